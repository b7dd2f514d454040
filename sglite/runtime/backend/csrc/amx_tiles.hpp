// The eight tile registers of AMX: shapes, loads, stores and products; or a plain imitation of them, which does the
// same with numbers in memory, so that what is built on them is tested on processors that have none.
#pragma once

#include "vectors.hpp"

namespace {

constexpr int64_t kTileLines = 16, kTileLine = 64;  // rows of a tile, and bytes of one

// What LDTILECFG reads: of every tile its rows and their bytes.
struct alignas(64) TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];

    SG_INLINE void set(TileShapes& shapes, int tile, int64_t lines) {
        shapes.lines[tile] = (uint8_t)lines;
        shapes.line_bytes[tile] = lines ? kTileLine : 0;
    }
};

#ifdef SG_TILES_IMITATED

struct ImitatedTiles {
    TileShapes shapes;
    uint8_t lines[8][kTileLines][kTileLine];
};
static thread_local ImitatedTiles imitated;

SG_INLINE void tile_shapes(const TileShapes& shapes) {
    memset(&imitated, 0, sizeof imitated);
    imitated.shapes = shapes;
}

SG_INLINE void tile_release() { memset(&imitated, 0, sizeof imitated); }

template <int Tile>
SG_INLINE void tile_zero() {
    memset(imitated.lines[Tile], 0, sizeof imitated.lines[Tile]);
}

template <int Tile, bool kPassing = false>
static void tile_load(const void* from, int64_t stride) {
    if (!imitated.shapes.lines[Tile]) __builtin_trap();
    tile_zero<Tile>();
    for (int64_t i = 0; i < imitated.shapes.lines[Tile]; i++)
        memcpy(imitated.lines[Tile][i], (const char*)from + i * stride, imitated.shapes.line_bytes[Tile]);
}

template <int Tile>
static void tile_store(void* to, int64_t stride) {
    if (!imitated.shapes.lines[Tile]) __builtin_trap();
    for (int64_t i = 0; i < imitated.shapes.lines[Tile]; i++)
        memcpy((char*)to + i * stride, imitated.lines[Tile][i], imitated.shapes.line_bytes[Tile]);
}

// Products of one group of 4 bytes, added to what one number of the result has so far.
SG_INLINE void add_products(float sums[2], const uint8_t* a, const uint8_t* b) {
    bf16 x[2], y[2];
    memcpy(x, a, 4);
    memcpy(y, b, 4);
    for (int i = 0; i < 2; i++) sums[i] += single(x[i]) * single(y[i]);
}

SG_INLINE void add_products(int32_t sums[2], const uint8_t* a, const uint8_t* b) {
    for (int i = 0; i < 4; i++) sums[0] += (int32_t)(int8_t)a[i] * (int32_t)b[i];
}

template <class Sum, int C, int A, int B>
static void imitated_dot() {
    const TileShapes& shapes = imitated.shapes;
    const int64_t groups = shapes.line_bytes[A] / 4;
    const bool fit = shapes.lines[A] == shapes.lines[C] && shapes.lines[B] == groups &&
                     shapes.line_bytes[B] == shapes.line_bytes[C] && shapes.lines[C];
    if (!fit) __builtin_trap();
    for (int64_t row = 0; row < shapes.lines[C]; row++)
        for (int64_t out = 0; out < shapes.line_bytes[C] / 4; out++) {
            Sum sums[2] = {0, 0}, all;
            for (int64_t g = 0; g < groups; g++)
                add_products(sums, imitated.lines[A][row] + 4 * g, imitated.lines[B][g] + 4 * out);
            uint8_t* at = imitated.lines[C][row] + 4 * out;
            memcpy(&all, at, 4);
            all += sums[0] + sums[1];
            memcpy(at, &all, 4);
        }
}

// C += A B: pairs of bfloat16 into float32; of numbers of one byte four into int32, signed in A and unsigned in B.
template <int Bytes, int C, int A, int B>
SG_INLINE void tile_dot() {
    if constexpr (Bytes == 2)
        imitated_dot<float, C, A, B>();
    else
        imitated_dot<int32_t, C, A, B>();
}

#else

// Written out, since not every compiler's intrinsics say that they read and write memory.
SG_INLINE void tile_shapes(const TileShapes& shapes) { asm volatile("ldtilecfg (%0)" ::"r"(&shapes) : "memory"); }

SG_INLINE void tile_release() { asm volatile("tilerelease" ::: "memory"); }

template <int Tile>
SG_INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}

// What is passing by need not stay in the first cache.
template <int Tile, bool kPassing = false>
SG_INLINE void tile_load(const void* from, int64_t stride) {
    if constexpr (kPassing)
        asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
    else
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile>
SG_INLINE void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}

// C += A B: pairs of bfloat16 into float32; of numbers of one byte four into int32, signed in A and unsigned in B.
template <int Bytes, int C, int A, int B>
SG_INLINE void tile_dot() {
    if constexpr (Bytes == 2)
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    else
        asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
