// Activations of gated products.
#pragma once

#include "vectors.hpp"

namespace {

SG_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }

SG_INLINE vf activated(vf gate, vf up, int32_t activation) {
    if (activation == 0) return gate * sigmoid(gate) * up;
    if (activation == 1)  // 0.5 (1 + tanh(y)) is sigmoid(2 y)
        return gate * sigmoid(1.5957691216057308f * (gate + 0.044715f * gate * gate * gate)) * up;
    gate = smaller(gate, splat(7.0f));
    up = larger(smaller(up, splat(7.0f)), splat(-7.0f));
    return gate * sigmoid(1.702f * gate) * (up + 1.0f);
}

}  // namespace
