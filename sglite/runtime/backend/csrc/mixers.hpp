// Arguments of the kernels of experts, latent attention and recurrent layers; see kernels.hpp.
//
// Python fills these structs in as native_mixers.py lays them out: a field here is a field there.
#pragma once

#include "kernels.hpp"

namespace sglite {

// Packed matrices of one shape, one behind the other.
struct Matrices {
    const void* data;
    int64_t count, outs, ins;
    // As of a Weight; experts may have codes.
    int32_t kind, type;
    const float *scales, *zeros;
    int64_t group;

    // Number `item` of them.
    Weight one(int64_t item) const {
        const int64_t bytes = kind < 2 ? outs * ins * (kind ? 2 : 4) : outs * ins / (kind - 1);
        const int64_t table = kind < 2 ? 0 : item * outs * (ins / group);
        return {static_cast<const char*>(data) + item * bytes, outs, ins, kind, type,
                scales ? scales + table : nullptr, zeros ? zeros + table : nullptr, group};
    }
};

// Matrix i with number i of every row: out [rows, i, outs] = x [rows, i, ins] times the matrix transposed.
struct Each {
    const void* x;
    int64_t x_row, x_item;  // in numbers
    Matrices weights;
    void* out;
    int64_t rows;
    int64_t row_step, block_step;
};

constexpr int64_t kMostExperts = 1024;  // that tokens choose among

// See Backend.route.
struct Route {
    const float* logits;  // [tokens, experts]
    const float* bias;    // [experts], or null
    int64_t* ids;         // [tokens, top_k]
    float* weights;
    int64_t tokens, experts, top_k, groups, top_groups;
    float scaling;
    int32_t sigmoid, pairs, renormalize;  // `pairs`: a group counts as much as its best two
    int64_t row_step;
};

// Some of the tokens that have chosen an expert: numbers of pairs of token and choice, which are sorted by expert.
struct ExpertPiece {
    int32_t expert, pairs;
    int64_t first;
};

constexpr int64_t kExpertRows = 192;  // tokens that share a stretch of an expert's weights
constexpr int64_t kExpertBlocks = 4;  // blocks of gates, and of ups, between products and activation

// Experts of a layer, see Backend.moe: `up` makes the hidden numbers of all pairs, `down` their results, `mix` adds up
// those of a token in the order in which it has chosen them.
struct Experts {
    const void* x;  // [tokens, gate_up.ins]
    int64_t x_stride;
    Matrices gate_up, down;
    const void *gate_up_bias, *down_bias;  // [experts, outs], or null
    const float* shares;                   // [tokens, chosen]
    void* out;                             // [tokens, down.outs]
    int64_t tokens, chosen;
    int32_t activation, type;
    const int32_t* order;   // [pairs] token * chosen + choice, by expert
    const int32_t* places;  // the other way round
    const ExpertPiece* pieces;
    int64_t num_pieces;
    void *hidden, *results;  // [pairs, down.ins], [pairs, down.outs]
    char* scratch;           // of the first thread; `scratch_size` bytes each
    int64_t scratch_size;
    int64_t columns, block_step, row_step;  // stretches of blocks a piece is cut into; blocks of one; rows of `mix`
    const Inputs* inputs;                   // of codes: what is made of x, or of `hidden`
};

// What one piece of latent attention computes: heads of some queries of one row.
struct LatentPiece {
    int32_t row, query, queries, head, heads;
};

constexpr int64_t kLatentRows = 96;    // queries times heads that share the work on a stretch of slots
constexpr int64_t kLatentSlots = 64;   // of a stretch

// Attention over latents of a ragged batch, see Backend.mla_attention.
struct Latents {
    const void* q;  // [tokens, heads, dim]
    int64_t q_token, q_head;
    const void* latents;  // [slots, dim]
    void* out;            // [tokens, heads, v_dim]
    const int32_t* tables;  // as of Attention
    const int64_t *table_from, *query_from, *starts;
    int64_t heads, dim, v_dim, page_size;
    float scale;
    int32_t type;
    const LatentPiece* pieces;
    char* scratch;
    int64_t scratch_size;
};

// Rows of a batch with the slots of their states.
struct States {
    const int64_t* query_from;  // [rows + 1]
    const int64_t* slots;       // [rows]
    int64_t rows;
};

// See Backend.causal_conv; 2 to 4 taps.
struct Conv {
    const void* x;  // [tokens, channels]
    int64_t x_stride;
    const void* weight;  // [channels, taps]
    void* states;        // [slots, channels, taps - 1]
    void* out;           // [tokens, channels]
    States batch;
    int64_t channels, taps;
    int32_t type;
};

constexpr int64_t kChannels = 256;  // that are convolved together

constexpr int64_t kDeltaTokens = 32;  // tokens that are read before a stripe of the memory goes over them
constexpr int64_t kDeltaDim = 256;    // of keys, at most

// See Backend.gated_delta_rule.
struct Delta {
    const void *q, *k, *v;               // [tokens, heads, dim]
    int64_t q_token, k_token, v_token;   // between tokens; heads lie side by side
    const float *decay, *beta;           // [tokens, v_heads]
    float* states;                       // [slots, v_heads, k_dim, v_dim]
    void* out;                           // [tokens, v_heads, v_dim]
    States batch;
    int64_t k_heads, v_heads, k_dim, v_dim;
    int32_t type;
};

// out [rows, size] = norm of x * weight * silu(gate), see Backend.gated_norm.
struct GatedNorm {
    const void* x;  // [tokens, heads, size], heads side by side
    int64_t x_token;
    const void* gate;
    int64_t gate_token;
    const float* weight;  // [size]
    void* out;
    int64_t tokens, heads, size;
    float eps;
    int32_t type;
    int64_t row_step;
};

}  // namespace sglite
