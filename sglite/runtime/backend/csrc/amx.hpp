// Products by the tiles of AMX, of bfloat16, or of bytes (x signed, weights unsigned): 32 rows times 32 outputs at a
// time.
//
//                        tile 6   tile 7      a block of weights each, 64 bytes of inputs by 16 outputs
//     tile 4  16 rows    tile 0   tile 1
//     tile 5  16 rows    tile 2   tile 3      sums
//
// A thread has shapes for its tiles from the begin of a product to its end, and gives them up then: a thread without
// costs the kernel nothing to switch. Few rows are not worth it: the weights come no faster.
#pragma once

#include "amx_tiles.hpp"

namespace {

constexpr int64_t kLeastTileRows = 5;   // from which tiles are faster than vectors
constexpr int64_t kTileAhead = 2048;    // bytes of a block that are fetched before they are needed

template <class T>
constexpr int64_t kTileInputs = kTileLine / (int64_t)sizeof(T);

#if defined(SG_TILES) || defined(SG_TILES_IMITATED)

template <class T>
constexpr bool kTiles = sizeof(T) <= 2;  // whether tiles multiply numbers of this type here

// Shapes for `rows` rows, at most 32.
SG_INLINE void shape_tiles(int64_t rows) {
    TileShapes shapes;
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    const int64_t first = least(rows, kTileLines), second = rows - first;
    TileShapes::set(shapes, 0, first), TileShapes::set(shapes, 1, first), TileShapes::set(shapes, 4, first);
    TileShapes::set(shapes, 2, second), TileShapes::set(shapes, 3, second), TileShapes::set(shapes, 5, second);
    TileShapes::set(shapes, 6, kTileLines), TileShapes::set(shapes, 7, kTileLines);
    tile_shapes(shapes);
}

// One tile of inputs: rows `stride` bytes apart, the second block `block` bytes behind the first.
template <class T, bool TwoRows, bool TwoBlocks>
SG_INLINE void tile_step(const void* x, int64_t stride, const void* w, int64_t block) {
    tile_load<4>(x, stride);
    tile_load<6>(w, kTileLine);
    tile_dot<(int)sizeof(T), 0, 4, 6>();
    if constexpr (TwoBlocks) {
        tile_load<7>((const char*)w + block, kTileLine);
        tile_dot<(int)sizeof(T), 1, 4, 7>();
    }
    if constexpr (TwoRows) {
        tile_load<5>((const char*)x + kTileLines * stride, stride);
        tile_dot<(int)sizeof(T), 2, 5, 6>();
        if constexpr (TwoBlocks) tile_dot<(int)sizeof(T), 3, 5, 7>();
    }
}

// The last inputs where they do not fill a tile, with zeros behind them.
template <class T, bool TwoRows, bool TwoBlocks>
static __attribute__((noinline)) void last_tile_step(int64_t rows, const T* x, int64_t x_stride, const T* w,
                                                     int64_t block, int64_t rest) {
    alignas(64) T some[2 * kTileLines][kTileInputs<T>], weights[2][kTileLines * kTileInputs<T>];
    memset(some, 0, sizeof some);
    memset(weights, 0, sizeof weights);
    for (int64_t r = 0; r < rows; r++) memcpy(some[r], x + r * x_stride, rest * sizeof(T));
    for (int64_t b = 0; b < (TwoBlocks ? 2 : 1); b++) memcpy(weights[b], w + b * block, kLanes * rest * sizeof(T));
    tile_step<T, TwoRows, TwoBlocks>(some, kTileLine, weights, sizeof weights[0]);
}

// Up to 32 rows times one block or two, `block` numbers apart.
template <class T, bool TwoRows, bool TwoBlocks, class Put>
static void tile_block(int64_t rows, const T* x, int64_t x_stride, const T* w, int64_t block, int64_t ins,
                       int64_t first, const Put& put) {
    constexpr int64_t inputs = kTileInputs<T>, bytes = kTileLines * kTileLine;
    tile_zero<0>();
    if constexpr (TwoBlocks) tile_zero<1>();
    if constexpr (TwoRows) tile_zero<2>();
    if constexpr (TwoRows && TwoBlocks) tile_zero<3>();
    const int64_t whole = ins / inputs, apart = block * (int64_t)sizeof(T);
    for (int64_t i = 0; i < whole; i++) {
        const char* at = (const char*)w + i * bytes;
        // Behind the end of the first block comes the second, which is read already.
        const int64_t ahead = kTileAhead + (TwoBlocks && (whole - i) * bytes <= kTileAhead ? apart : 0);
        for (int64_t line = 0; line < bytes; line += kTileLine) {
            __builtin_prefetch(at + ahead + line, 0, 3);
            if constexpr (TwoBlocks) __builtin_prefetch(at + apart + ahead + line, 0, 3);
        }
        tile_step<T, TwoRows, TwoBlocks>(x + i * inputs, x_stride * (int64_t)sizeof(T), at, apart);
    }
    if (ins > whole * inputs)
        last_tile_step<T, TwoRows, TwoBlocks>(rows, x + whole * inputs, x_stride, w + whole * inputs * kLanes, block,
                                              ins - whole * inputs);
    alignas(64) float sums[2 * kTileLines][2 * kLanes];
    tile_store<0>(sums[0], sizeof sums[0]);
    if constexpr (TwoBlocks) tile_store<1>(sums[0] + kLanes, sizeof sums[0]);
    if constexpr (TwoRows) tile_store<2>(sums[kTileLines], sizeof sums[0]);
    if constexpr (TwoRows && TwoBlocks) tile_store<3>(sums[kTileLines] + kLanes, sizeof sums[0]);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < (TwoBlocks ? 2 : 1); b++) put(r, first + b, load<vf>(sums[r] + b * kLanes));
}

// `put(row, block, sums)` for all rows of x times `blocks` blocks; of bytes the sums are whole numbers of 32 bits in
// the same lanes. x, `x_stride`, `block` in numbers.
template <class T, class Put>
static void tile_products(int64_t rows, const T* x, int64_t x_stride, const T* w, int64_t block, int64_t blocks,
                          int64_t ins, const Put& put) {
    int64_t shaped = 0;
    for (int64_t r = 0; r < rows; r += 2 * kTileLines) {
        const int64_t count = least(2 * kTileLines, rows - r);
        if (count != shaped) shape_tiles(count);
        shaped = count;
        const T* from = x + r * x_stride;
        const auto placed = [&](int64_t row, int64_t b, vf sums) { put(r + row, b, sums); };
        for (int64_t b = 0; b < blocks; b += 2) {
            const T* at = w + b * block;
            const bool two = blocks - b > 1;
            if (count > kTileLines && two)
                tile_block<T, true, true>(count, from, x_stride, at, block, ins, b, placed);
            else if (count > kTileLines)
                tile_block<T, true, false>(count, from, x_stride, at, block, ins, b, placed);
            else if (two)
                tile_block<T, false, true>(count, from, x_stride, at, block, ins, b, placed);
            else
                tile_block<T, false, false>(count, from, x_stride, at, block, ins, b, placed);
        }
    }
    tile_release();
}

#else

template <class T>
constexpr bool kTiles = false;

#endif

}  // namespace
