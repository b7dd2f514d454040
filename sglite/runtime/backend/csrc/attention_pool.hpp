// What all ways of attention share: where a row's slots lie in the pool, how the pool's numbers are read, and what
// becomes of a result.
#pragma once

#include "kernels.hpp"
#include "vectors.hpp"

namespace {

constexpr float kNothing = -__builtin_inff();

// The pool rows of up to 16 slots from `first`; behind `end` the last is repeated.
SG_INLINE void find_slots(const sglite::Attention& a, int64_t row, int64_t first, int64_t end, int64_t found[kLanes]) {
    const int32_t* table = a.tables + a.table_from[row];
    int64_t page = first / a.page_size, offset = first % a.page_size;
    for (int i = 0; i < kLanes; i++) {
        found[i] = (int64_t)table[page] * a.page_size + offset;
        if (first + i + 1 >= end) continue;
        if (++offset == a.page_size) page++, offset = 0;
    }
}

SG_INLINE vi lanes() { return vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// The softmax of one token and head so far.
struct Softmax {
    float most, total;
};

// The first slot that a token sees, of those up to its own.
SG_INLINE int64_t first_seen(const sglite::Attention& a, int64_t end) { return a.window ? most(0, end - a.window) : 0; }

SG_INLINE bool is_parted(const sglite::Attention& a, int64_t token) {
    return a.part_from[token + 1] > a.part_from[token];
}

SG_INLINE float* part_of(const sglite::Attention& a, int64_t token, int64_t part) {
    return a.parts + (a.part_from[token] + part) * a.part_size;
}

// Where a part has the softmax of its heads.
SG_INLINE Softmax* softmax_of(const sglite::Attention& a, float* part) { return (Softmax*)(part + a.heads * a.v_dim); }

// A sink counts where a token is finished, not in its parts.
SG_INLINE Softmax begin(const sglite::Attention& a, int64_t token, int64_t head) {
    return a.sinks && !is_parted(a, token) ? Softmax{a.sinks[head], 1.0f} : Softmax{kNothing, 0.0f};
}

template <class T>
SG_INLINE void write_head(const sglite::Attention& a, int64_t token, int64_t head, const float* sums, float total) {
    T* out = (T*)a.out + (token * a.heads + head) * a.v_dim;
    const vf scale = splat(1.0f / total);
    for (int64_t d = 0; d < a.v_dim; d += kLanes) store_floats(out + d, load<vf>(sums + d) * scale);
}

}  // namespace
