// All layers of a dense decoder, one behind the other, in one call.
#pragma once

#include "engine.hpp"
#include "plan.hpp"

namespace sglite {

// See DenseLayer in backend/base.py. Biases may be null; norms of heads are null together.
struct DenseLayer {
    const void *attention_norm, *mlp_norm;
    Weight qkv, out, gate_up, down;
    const void *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
    const void *q_norm, *k_norm;
    const float* sinks;
    void *k, *v;  // of the pool
    float *k_scales, *v_scales;  // or null
    int64_t heads, kv_heads, dim, window;
    float scale, attention_eps, mlp_eps, head_eps;
    int32_t activation, norm_type, framed;
};

// What the layers have in common. Two batches: as layers in pages see it, and those in frames.
struct DenseStep {
    void* x;  // [tokens, hidden], becomes the result
    const void *cos, *sin;
    Plan* plans[2];
    const int64_t* slots[2];
    Plan* last;             // of the tokens whose results alone are wanted, a row each; or null: all are
    const int64_t* wanted;  // which they are, ascending
    int64_t num_wanted;
    int64_t tokens, hidden, turned;
    int32_t type;
};

void dense_layers(Engine& engine, const DenseLayer* layers, int64_t count, const DenseStep& step);

}  // namespace sglite
