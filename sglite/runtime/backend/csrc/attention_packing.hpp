// Keys, values and queries as products take them.
#pragma once

#include "attention_pool.hpp"
#include "product.hpp"

namespace {

template <class T>
constexpr int64_t kSlots = kTiles<T> ? sglite::kTileSlots : sglite::kTileSlots / 4;  // of a stretch

// Numbers of a type in 4 bytes, and in one of 16 lanes' lines.
template <class T>
constexpr int64_t kPacked = 4 / sizeof(T);
template <class T>
constexpr int64_t kTurned = kLanes * kPacked<T>;

// Slots that are computed where there are `count`.
template <class T>
SG_INLINE int64_t turned(int64_t count) {
    return (count + kTurned<T> - 1) / kTurned<T> * kTurned<T>;
}

// Where row `row` of keys or of turned values has its number `at`, of `size`.
template <class T>
SG_INLINE int64_t placed(int64_t row, int64_t at, int64_t size) {
    if constexpr (kTiles<T>) {
        constexpr int64_t line = kTileInputs<T>;
        return row / kStrip * kStrip * size + at / line * kStrip * line + row % kStrip * line + at % line;
    }
    return row * size + at;
}

// Rows and columns of 16 x 16 numbers of 4 bytes change places: first within 4 x 4 of them, then those.
SG_INLINE void transpose(vu x[kLanes]) {
    vu y[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; i += 2) {
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            const vu a = y[i + j], b = y[i + j + 2];
            x[i + 2 * j] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            x[i + 2 * j + 1] =
                __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const vu a = x[j], b = x[4 + j], c = x[8 + j], d = x[12 + j];
        const vu p = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        const vu q = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        const vu r = __builtin_shufflevector(c, d, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        const vu s = __builtin_shufflevector(c, d, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        y[j] = __builtin_shufflevector(p, r, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        y[8 + j] = __builtin_shufflevector(p, r, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        y[4 + j] = __builtin_shufflevector(q, s, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        y[12 + j] = __builtin_shufflevector(q, s, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) x[i] = y[i];
}

// Queries of 16 lanes, [dim / n][16][n] with n numbers in 4 bytes.
template <class T>
SG_INLINE void pack_queries(const T* const from[kLanes], int64_t dim, T* to) {
    for (int64_t d = 0; d < dim; d += kTurned<T>) {
        vu block[kLanes];
        for (int i = 0; i < kLanes; i++) block[i] = load<vu>(from[i] + d);
        transpose(block);
        for (int i = 0; i < kLanes; i++) store(to + (d + i * kPacked<T>) * kLanes, block[i]);
    }
}

// A line of a slot's numbers, of any type, as an attention in type T takes them.
SG_INLINE vu line_of(const float* from, const float*) { return load<vu>(from); }
SG_INLINE vu line_of(const bf16* from, const bf16*) { return load<vu>(from); }
SG_INLINE vu line_of(const int8_t* from, const float*) { return (vu)load_floats(from); }
SG_INLINE vu line_of(const int8_t* from, const bf16*) {
    const vh low = __builtin_convertvector((vu)load_floats(from) >> 16, vh);
    const vh high = __builtin_convertvector((vu)load_floats(from + kLanes) >> 16, vh);
    return (vu)__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                                       20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}

// Rows of values that 16 slots' lines become: 16 numbers of one row, or of two.
SG_INLINE void store_turned(vu line, float* to, int64_t) { store(to, line); }
SG_INLINE void store_turned(vu line, bf16* to, int64_t next) {
    store(to, __builtin_convertvector(line, vh));
    store(to + next, __builtin_convertvector(line >> 16, vh));
}

// Values of 16 slots from `slot`, [v_dim][kSlots].
template <class T, class S>
SG_INLINE void turn_values(const S* const from[kLanes], int64_t v_dim, int64_t slot, T* to) {
    constexpr int64_t next = kTiles<T> ? kTurned<T> : kSlots<T>;  // row
    for (int64_t d = 0; d < v_dim; d += kTurned<T>) {
        vu block[kLanes];
        for (int i = 0; i < kLanes; i++) block[i] = line_of(from[i] + d, to);
        transpose(block);
        T* rows = to + placed<T>(d, slot, kSlots<T>);
        for (int i = 0; i < kLanes; i++) store_turned(block[i], rows + i * kPacked<T> * next, next);
    }
}

}  // namespace
