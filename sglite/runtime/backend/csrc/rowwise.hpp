// Kernels that go over the numbers of a token once: norms, rotary embedding and storing, gated activations.
#pragma once

#include "kernels.hpp"
#include "vectors.hpp"

namespace {

SG_INLINE float inverse_root(float x) { return 1.0f / __builtin_sqrtf(x); }

// 1 / root mean square of x [size], size a multiple of 16.
template <class T>
SG_INLINE float scale_of(const T* x, int64_t size, float eps) {
    vf squares[2] = {vf{}, vf{}};
    for (int64_t i = 0; i < size; i += kLanes) {
        const vf v = load_floats(x + i);
        squares[i / kLanes % 2] += v * v;
    }
    return inverse_root(sum(squares[0] + squares[1]) / (float)size + eps);
}

template <class T, class W>
static void norm_row(const sglite::Norm& n, int64_t row) {
    const T* x = (const T*)n.x + row * n.x_stride;
    if (n.added) {
        const T* added = (const T*)n.added + row * n.added_stride;
        T* sums = (T*)n.sum + row * n.size;
        for (int64_t i = 0; i < n.size; i += kLanes) store_floats(sums + i, load_floats(x + i) + load_floats(added + i));
        x = sums;
    }
    if (!n.out) return;
    const vf scale = splat(scale_of(x, n.size, n.eps));
    T* out = (T*)n.out + row * n.size;
    for (int64_t i = 0; i < n.size; i += kLanes)
        store_floats(out + i, load_floats(x + i) * scale * load_floats((const W*)n.weight + i));
}

static void norm(void* job, int64_t piece, int) {
    const sglite::Norm& n = *(const sglite::Norm*)job;
    const int64_t end = least(n.rows, (piece + 1) * n.row_step);
    for (int64_t row = piece * n.row_step; row < end; row++) {
        if (!n.type)
            norm_row<float, float>(n, row);
        else if (n.weight_type)
            norm_row<bf16, bf16>(n, row);
        else
            norm_row<bf16, float>(n, row);
    }
}

// One head of q or k: normalised and turned. Dimension i turns together with i + turned / 2.
template <class T, class W>
SG_INLINE void turn(const T* x, T* out, const W* weight, const T* cos, const T* sin, const sglite::Rotate& r) {
    const vf scale = splat(weight ? scale_of(x, r.dim, r.eps) : 1.0f);
    const int64_t half = r.turned / 2;
    const auto at = [&](int64_t i) {
        vf value = load_floats(x + i);
        if (weight) {
            T rounded_value[kLanes];  // to T before it turns, as the specification does
            store_floats(rounded_value, value * scale * load_floats(weight + i));
            value = load_floats(rounded_value);
        }
        return value;
    };
    for (int64_t i = 0; i < half; i += kLanes) {
        const vf a = at(i), b = at(i + half), c = load_floats(cos + i), s = load_floats(sin + i);
        store_floats(out + i, a * c - b * s);
        store_floats(out + i + half, b * c + a * s);
    }
    for (int64_t i = r.turned; i < r.dim; i += kLanes) store_floats(out + i, at(i));
}

// A head's numbers as whole ones and what they are to be multiplied with, which is NaN where one is not finite.
template <class T>
SG_INLINE void quantise(const T* x, int64_t size, int8_t* to, float* scale) {
    vf top = vf{}, nothing = vf{};
    for (int64_t i = 0; i < size; i += kLanes) {
        const vf value = load_floats(x + i);
        top = larger(larger(value, -value), top);
        nothing += value * 0.0f;
    }
    const float found = largest(top), inverse = found > 0.0f ? 127.0f / found : 0.0f;
    *scale = found / 127.0f + sum(nothing);
    for (int64_t i = 0; i < size; i += kLanes)
        store(to + i, __builtin_convertvector(nearest(load_floats(x + i) * inverse), vb));
}

// Keys and values of a token to where the pool has them.
template <class T, class W>
SG_INLINE void store_token(const sglite::Rotate& r, const T* k, const T* v, const T* cos, const T* sin, int64_t slot) {
    for (int64_t h = 0; h < r.kv_heads; h++) {
        const int64_t to = slot * r.kv_heads + h;
        const T *key = k + h * r.dim, *value = v + h * r.dim;
        if (!r.k_scales) {
            turn(key, (T*)r.k + to * r.dim, (const W*)r.k_norm, cos, sin, r);
            memcpy((T*)r.v + to * r.dim, value, r.dim * sizeof(T));
            continue;
        }
        T turned[sglite::kLongestHead];
        turn(key, turned, (const W*)r.k_norm, cos, sin, r);
        quantise(turned, r.dim, (int8_t*)r.k + to * r.dim, r.k_scales + to);
        quantise(value, r.dim, (int8_t*)r.v + to * r.dim, r.v_scales + to);
    }
}

template <class T, class W>
static void rotate_token(const sglite::Rotate& r, int64_t token) {
    const T* q = (const T*)r.qkv + token * r.stride;
    const T* k = q + r.heads * r.dim;
    const T* cos = (const T*)r.cos + token * (r.turned / 2);
    const T* sin = (const T*)r.sin + token * (r.turned / 2);
    T* q_out = (T*)r.q_out + token * r.heads * r.dim;
    for (int64_t h = 0; h < r.heads; h++) turn(q + h * r.dim, q_out + h * r.dim, (const W*)r.q_norm, cos, sin, r);
    if (r.slots[token] >= 0) store_token<T, W>(r, k, k + r.kv_heads * r.dim, cos, sin, r.slots[token]);
}

static void rotate(void* job, int64_t piece, int) {
    const sglite::Rotate& r = *(const sglite::Rotate*)job;
    const int64_t end = least(r.tokens, (piece + 1) * r.row_step);
    for (int64_t token = piece * r.row_step; token < end; token++) {
        if (!r.type)
            rotate_token<float, float>(r, token);
        else if (r.wide_norms)
            rotate_token<bf16, float>(r, token);
        else
            rotate_token<bf16, bf16>(r, token);
    }
}

template <class T>
static void gated_row(const sglite::Gated& g, int64_t row) {
    const T* x = (const T*)g.x + row * g.x_stride;
    T* out = (T*)g.out + row * g.out_stride;
    for (int64_t i = 0; i < g.size; i += kLanes)
        store_floats(out + i, activated(load_floats(x + i), load_floats(x + g.size + i), g.activation));
}

static void gated(void* job, int64_t piece, int) {
    const sglite::Gated& g = *(const sglite::Gated*)job;
    const int64_t end = least(g.rows, (piece + 1) * g.row_step);
    for (int64_t row = piece * g.row_step; row < end; row++) {
        if (g.type)
            gated_row<bf16>(g, row);
        else
            gated_row<float>(g, row);
    }
}

}  // namespace
