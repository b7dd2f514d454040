// What the library computes: arguments of every kernel, and the table of them that each instruction set fills.
//
// A kernel is a job of numbered pieces which may run in any order, on any thread. Types are 0 for float32 and 1 for
// bfloat16, in tensors of one call the same unless said otherwise.
#pragma once

#include <stdint.h>

namespace sglite {

// A packed weight [outs, ins]; how it lies in memory: product.hpp, of codes codes.hpp.
struct Weight {
    const void* data;
    int64_t outs, ins;
    int32_t kind;  // 0 float32, 1 bfloat16, as types; 2 codes of eight bits, 3 of four
    int32_t type;  // of x, of the bias and of rows where they are read
    // Of codes: number = (code - zero) * scale.
    const float* scales;  // [outs / 16][ins / group][16]
    const float* zeros;   // likewise, or null
    int64_t group;        // inputs that share a scale, a multiple of 8
};

constexpr int64_t kCodeRowStep = 192;  // rows that at most share a stretch of weights in the cache

// What is made of the rows of x before they are multiplied with codes.
struct Inputs {
    const void* x;
    int64_t x_stride;  // between rows, in numbers
    int64_t rows, ins, group;
    int32_t type, kind;  // of x, of the weight
    char* codes;         // x in whole numbers, where the weight has eight bits
    int64_t stride;      // between rows of them, in bytes
    float* scales;       // [rows][ins / group] of these numbers
    void* sums;          // likewise: of eight bits int32, 128 times the codes'; else float32, x's
    int64_t row_step;
};

// out [rows, outs] = x [rows, ins] times a weight transposed, plus bias [outs]. x and bias have the weight's type.
struct Product {
    const void* x;
    int64_t x_stride;  // between rows, in numbers
    Weight weight;
    const void* bias;  // or null
    void* out;
    int64_t out_stride;
    int64_t rows;
    int32_t out_type;
    const void* arranged;  // x as the kernels read it, where there are groups
    int64_t groups;        // of rows, 0: x is read as it lies
    int64_t strip;         // rows of a group but the last, which are arranged for tiles; 0: they are not
    // Of one piece: rows (or groups) and blocks of a product, steps of an arrangement.
    int64_t row_step, block_step, step_step;
    const Inputs* inputs;  // of codes
    int32_t gated;         // with strips: an activation and 1, the result is half as many outputs; or 0
};

// How a product wants to be cut.
struct Cut {
    int64_t groups;  // of rows, which are arranged first; 0: x is read as it lies
    int64_t blocks;  // that are computed side by side
    int64_t number;  // bytes that a number of x takes when it is arranged
    int64_t strip;   // rows of a group where that is fixed, arranged for tiles; or 0
    int64_t panel;   // rows of strips that are computed together at most
};

// The largest number and the first place that it has, in the products of x and a weight: what is left of them.
struct Greatest {
    Product product;  // without bias; `out_type` 0
    float* room;      // of the first thread, `room_size` numbers each
    int64_t room_size;
    float* tops;   // [threads, rows], NaN where there is one in the row
    int64_t* ids;  // [threads, rows]
};

// What one piece of attention computes: some tokens, with some KV heads, over slots `from` up to `to` of a row's pages.
// A token sees none behind its own, and with a window not all before it.
struct AttentionPiece {
    int32_t row, kv_head, kv_heads;
    int32_t token, tokens;  // in `order`
    int32_t from, to;
    int32_t part;  // of each token's parts
    int32_t tile;  // the tokens together, with one KV head; otherwise each with all of the piece's heads
    int32_t ready;  // where its row's first stretch lies among those made ready, of that KV head; -1: it does not
};

// A stretch of a row's slots whose keys and values are copied as tiles read them, for all tiles of its queries.
struct ReadyStretch {
    int32_t row, kv_head, number, end;  // of the row's stretches; slots of the row
};

constexpr int64_t kStateFloats = 16384;  // sums of all heads of a piece that is no tile
constexpr int64_t kTileLanes = 128;      // tokens times heads of a group that are computed together
constexpr int64_t kTileSlots = 256;

// Attention of a ragged batch over pages, see Backend.attention. One number type throughout, but for int8 in the pool.
//
// A token whose slots are shared out among several pieces has parts: what each piece found, in `parts`
//
//     sums [heads][v_dim], then largest score and total [heads][2]        `part_size` floats in all
//
// which `combine` puts together.
struct Attention {
    const void* q;  // [tokens, heads, dim]
    int64_t q_token, q_head;
    const void* k;  // [slots, kv_heads, dim]
    const void* v;  // [slots, kv_heads, v_dim]
    const float* k_scales;  // [slots, kv_heads]: k is int8, times these; or null
    const float* v_scales;
    void* out;  // [tokens, heads, v_dim]
    const float* sinks;  // [heads] or null
    const int32_t* tables;       // pages, row after row
    const int64_t* table_from;   // [rows] where a row's begin
    const int32_t* order;        // tokens as pieces name them
    const int32_t* ends;         // [tokens] slots up to its own
    const int32_t* part_from;    // [tokens + 1] which parts are a token's; none: it is computed by one piece
    const int32_t* parted;       // tokens that have some
    float* parts;
    int64_t heads, kv_heads, dim, v_dim, page_size, part_size;
    int64_t window;  // 0: none
    float scale;
    int32_t type;
    const AttentionPiece* pieces;
    int64_t num_pieces, threads;
    char* scratch;  // of the first thread; `scratch_size` bytes each
    int64_t scratch_size;
    const ReadyStretch* stretches;
    char* ready;  // keys [kTileSlots, dim] and values packed, stretch after stretch
};

// y = norm(x + added) * weight over the last dimension; `sum` gets x + added.
struct Norm {
    const void* x;
    int64_t x_stride;
    const void* added;  // or null
    int64_t added_stride;
    void* sum;  // null without added
    void* out;  // or null: only the sum is wanted
    const void* weight;
    int64_t rows, size;
    float eps;
    int32_t type, weight_type;
    int64_t row_step;
};

constexpr int64_t kLongestHead = 1024;  // of heads that are quantised

// q and k of every token: each head normalised where there are weights, turned; q to `q_out`, k and v to their slots.
struct Rotate {
    const void* qkv;  // [tokens, (heads + 2 kv_heads) * dim]
    int64_t stride;
    const void* q_norm;  // [dim], or null with k_norm
    const void* k_norm;
    const void* cos;  // [tokens, turned / 2]
    const void* sin;
    void* q_out;  // [tokens, heads, dim]
    void* k;      // [slots, kv_heads, dim]
    void* v;
    float* k_scales;  // [slots, kv_heads]: k and v are int8, times these; or null
    float* v_scales;
    const int64_t* slots;  // [tokens], -1: not stored
    int64_t tokens, heads, kv_heads, dim, turned;
    float eps;
    int32_t type;
    int64_t row_step;
    int32_t wide_norms;  // they are float32, whatever the type
};

// out [rows, size] = activation(gate) * up of x [rows, 2 * size], gates first.
struct Gated {
    const void* x;
    int64_t x_stride;
    void* out;
    int64_t out_stride;
    int64_t rows, size;
    int32_t activation;  // 0 silu, 1 gelu by tanh, 2 gpt-oss's
    int32_t type;
    int64_t row_step;
};

// One token of every row, see Backend.sample.
struct Sample {
    const float* logits;  // [rows, width]
    int64_t stride;
    const uint32_t* mask;  // [rows, words], or null
    int64_t words;
    const float* temperatures;  // and below: [rows]
    const int32_t* top_k;
    const double *top_p, *min_p, *uniforms;
    int64_t* ids;
    float *peaks, *left;
    int64_t rows, width;
    float* room;  // of the first thread; `room_size` numbers each
    int64_t room_size, row_step;
};

struct Kernels {
    Cut (*cut)(int64_t rows, int64_t ins, int32_t kind);
    void (*arrange)(void* job, int64_t piece, int thread);
    void (*product)(void* job, int64_t piece, int thread);
    void (*greatest)(void* job, int64_t piece, int thread);
    void (*ready)(void* job, int64_t piece, int thread);  // null: nothing is gained by it
    void (*attention)(void* job, int64_t piece, int thread);
    void (*combine)(void* job, int64_t piece, int thread);
    void (*norm)(void* job, int64_t piece, int thread);
    void (*rotate)(void* job, int64_t piece, int thread);
    void (*gated)(void* job, int64_t piece, int thread);
    void (*route)(void* job, int64_t piece, int thread);
    void (*experts_up)(void* job, int64_t piece, int thread);
    void (*experts_down)(void* job, int64_t piece, int thread);
    void (*experts_mix)(void* job, int64_t piece, int thread);
    void (*each)(void* job, int64_t piece, int thread);
    void (*latents)(void* job, int64_t piece, int thread);
    void (*conv)(void* job, int64_t piece, int thread);
    void (*delta)(void* job, int64_t piece, int thread);
    void (*gated_norm)(void* job, int64_t piece, int thread);
    void (*inputs)(void* job, int64_t piece, int thread);
    void (*codes)(void* job, int64_t piece, int thread);
    void (*sample)(void* job, int64_t piece, int thread);
    int64_t code_bytes;  // of an input in whole numbers
};

// What of them an instruction set for products of bytes changes.
struct ByteProducts {
    void (*inputs)(void* job, int64_t piece, int thread);
    void (*codes)(void* job, int64_t piece, int thread);
    void (*experts_up)(void* job, int64_t piece, int thread);
    void (*experts_down)(void* job, int64_t piece, int thread);
    int64_t code_bytes;
};

}  // namespace sglite
