// Products by the tiles of AMX, of bfloat16, or of bytes (x signed, weights unsigned): 32 rows times 32 outputs at a
// time.
//
//                        tile 6   tile 7      a block of weights each, 64 bytes of inputs by 16 outputs
//     tile 4  16 rows    tile 0   tile 1
//     tile 5  16 rows    tile 2   tile 3      sums
//
// A thread has shapes for its tiles from the begin of a product to its end, and gives them up then: a thread without
// costs the kernel nothing to switch. A few rows are not worth it: the weights come no faster.
//
// Many rows are arranged first, in strips of up to 32: [inputs / 32][rows of the strip][32], so that a tile of them is
// one stretch of memory, and go through the weights a stretch of inputs at a time, which then stays in the first cache.
#pragma once

#include "amx_tiles.hpp"

namespace {

constexpr int64_t kLeastTileRows = 5;   // from which tiles are faster than vectors
constexpr int64_t kTileAhead = 2048;    // bytes of a block that are fetched before they are needed
constexpr int64_t kMostTileRows = 64;   // beyond which they are arranged
constexpr int64_t kStrip = 2 * kTileLines;
constexpr int64_t kStretchTiles = 16;   // tiles of a block that stay in the first cache while strips meet them
constexpr int64_t kPanelRows = 512;     // of strips that do so, at most

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

// Tiles 0 to 3, as many as there are: zeros; or read and written as rows of 16 numbers, `line` bytes apart, the second
// block's `right` numbers and the second rows' `below` numbers behind.
template <bool TwoRows, bool TwoBlocks>
SG_INLINE void zero_sums() {
    tile_zero<0>();
    if constexpr (TwoBlocks) tile_zero<1>();
    if constexpr (TwoRows) tile_zero<2>();
    if constexpr (TwoRows && TwoBlocks) tile_zero<3>();
}

template <bool TwoRows, bool TwoBlocks>
SG_INLINE void load_sums(const float* from, int64_t line, int64_t right, int64_t below) {
    tile_load<0>(from, line);
    if constexpr (TwoBlocks) tile_load<1>(from + right, line);
    if constexpr (TwoRows) tile_load<2>(from + below, line);
    if constexpr (TwoRows && TwoBlocks) tile_load<3>(from + below + right, line);
}

template <bool TwoRows, bool TwoBlocks>
SG_INLINE void store_sums(float* to, int64_t line, int64_t right, int64_t below) {
    tile_store<0>(to, line);
    if constexpr (TwoBlocks) tile_store<1>(to + right, line);
    if constexpr (TwoRows) tile_store<2>(to + below, line);
    if constexpr (TwoRows && TwoBlocks) tile_store<3>(to + below + right, line);
}

// One tile of inputs: rows `stride` bytes apart, the second block `block` bytes behind the first. x may be passing by:
// the first cache keeps the weights then.
template <class T, bool TwoRows, bool TwoBlocks, bool kPassing = false>
SG_INLINE void tile_step(const void* x, int64_t stride, const void* w, int64_t block) {
    tile_load<4, kPassing>(x, stride);
    tile_load<6>(w, kTileLine);
    tile_dot<(int)sizeof(T), 0, 4, 6>();
    if constexpr (TwoBlocks) {
        tile_load<7>((const char*)w + block, kTileLine);
        tile_dot<(int)sizeof(T), 1, 4, 7>();
    }
    if constexpr (TwoRows) {
        tile_load<5, kPassing>((const char*)x + kTileLines * stride, stride);
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

// Up to 32 rows times one block or two, `block` numbers apart, which are fetched ahead where they come from memory.
template <class T, bool TwoRows, bool TwoBlocks, class Put>
static void tile_block(int64_t rows, const T* x, int64_t x_stride, const T* w, int64_t block, int64_t ins, bool fetched,
                       int64_t first, const Put& put) {
    constexpr int64_t inputs = kTileInputs<T>, bytes = kTileLines * kTileLine;
    zero_sums<TwoRows, TwoBlocks>();
    const int64_t whole = ins / inputs, apart = block * (int64_t)sizeof(T);
    for (int64_t i = 0; i < whole; i++) {
        const char* at = (const char*)w + i * bytes;
        // Behind the end of the first block comes the second, which is read already.
        const int64_t ahead = kTileAhead + (TwoBlocks && (whole - i) * bytes <= kTileAhead ? apart : 0);
        for (int64_t line = fetched ? 0 : bytes; line < bytes; line += kTileLine) {
            __builtin_prefetch(at + ahead + line, 0, 3);
            if constexpr (TwoBlocks) __builtin_prefetch(at + apart + ahead + line, 0, 3);
        }
        tile_step<T, TwoRows, TwoBlocks>(x + i * inputs, x_stride * (int64_t)sizeof(T), at, apart);
    }
    if (ins > whole * inputs)
        last_tile_step<T, TwoRows, TwoBlocks>(rows, x + whole * inputs, x_stride, w + whole * inputs * kLanes, block,
                                              ins - whole * inputs);
    alignas(64) float sums[2 * kTileLines][2 * kLanes];
    store_sums<TwoRows, TwoBlocks>(sums[0], sizeof sums[0], kLanes, kTileLines * 2 * kLanes);
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
                tile_block<T, true, true>(count, from, x_stride, at, block, ins, r == 0, b, placed);
            else if (count > kTileLines)
                tile_block<T, true, false>(count, from, x_stride, at, block, ins, r == 0, b, placed);
            else if (two)
                tile_block<T, false, true>(count, from, x_stride, at, block, ins, r == 0, b, placed);
            else
                tile_block<T, false, false>(count, from, x_stride, at, block, ins, r == 0, b, placed);
        }
    }
    tile_release();
}

// Two blocks of weights, or one. What comes next is fetched little by little: not much of it, the cache is full of rows.
struct TileWeights {
    const char *at, *next;  // or null
    int64_t apart;          // bytes between the blocks
    bool two;
    const char* coming;  // where the next stretch of both is fetched, and so many lines of each with every tile
    int64_t lines;
};

// What comes after tiles `from` up to `to`, while so many strips meet those.
SG_INLINE void fetch_after(TileWeights& w, int64_t from, int64_t to, int64_t tiles, int64_t strips) {
    w.coming = to < tiles ? w.at + to * kTileLines * kTileLine : w.next;
    const int64_t wanted = least(kStretchTiles, to < tiles ? tiles - to : tiles) * kTileLines;
    w.lines = w.coming ? (wanted + strips * (to - from) - 1) / (strips * (to - from)) : 0;
}

// Tiles from `from` up to `to` of a strip of `rows` rows: `sums` [4 tiles] += x w.
template <bool TwoRows, bool TwoBlocks>
SG_INLINE void strip_tiles(int64_t rows, const char* x, TileWeights& w, int64_t from, int64_t to, float* sums) {
    constexpr int64_t bytes = kTileLines * kTileLine, size = kTileLines * kLanes;
    if (from == 0) {
        zero_sums<TwoRows, TwoBlocks>();
    } else {
        load_sums<TwoRows, TwoBlocks>(sums, kTileLine, size, 2 * size);
    }
    for (int64_t i = from; i < to; i++) {
        for (int64_t line = 0; line < w.lines; line++, w.coming += kTileLine) {
            __builtin_prefetch(w.coming, 0, 2);
            __builtin_prefetch(w.coming + w.apart, 0, 2);
        }
        tile_step<bf16, TwoRows, TwoBlocks, true>(x + i * rows * kTileLine, kTileLine, w.at + i * bytes, w.apart);
    }
    store_sums<TwoRows, TwoBlocks>(sums, kTileLine, size, 2 * size);
}

static void any_strip_tiles(int64_t rows, const char* x, TileWeights& w, int64_t from, int64_t to, float* sums) {
    if (rows > kTileLines)
        w.two ? strip_tiles<true, true>(rows, x, w, from, to, sums) : strip_tiles<true, false>(rows, x, w, from, to, sums);
    else
        w.two ? strip_tiles<false, true>(rows, x, w, from, to, sums)
              : strip_tiles<false, false>(rows, x, w, from, to, sums);
}

// Rows in strips, at most kPanelRows, times two blocks or one of `tiles` tiles each: `put(row, first, second)`.
template <class Put>
SG_INLINE void strip_blocks(int64_t rows, const char* x, TileWeights w, int64_t tiles, const Put& put) {
    constexpr int64_t size = kTileLines * kLanes;
    alignas(64) float sums[kPanelRows / kStrip][4 * size];
    int64_t shaped = 0;
    for (int64_t i = 0; i < tiles; i += kStretchTiles) {
        const int64_t to = least(tiles, i + kStretchTiles);
        fetch_after(w, i, to, tiles, (rows + kStrip - 1) / kStrip);
        for (int64_t row = 0; row < rows; row += kStrip) {
            const int64_t count = least(kStrip, rows - row);
            if (count != shaped) shape_tiles(count);
            shaped = count;
            float* found = sums[row / kStrip];
            any_strip_tiles(count, x + row * tiles * kTileLine, w, i, to, found);
            for (int64_t r = 0; to == tiles && r < count; r++) {
                const float* line = found + r / kTileLines * 2 * size + r % kTileLines * kLanes;
                put(row + r, load<vf>(line), load<vf>(line + size));
            }
        }
    }
    tile_release();
}

// The same times `blocks` blocks one behind the other, or each with the one `apart` blocks behind it:
// `put(row, block, first)`, or `put(row, block, first, second)`.
template <class Put>
static void strip_products(int64_t rows, const char* x, const bf16* weights, int64_t blocks, int64_t tiles,
                           const Put& put) {
    const int64_t block = tiles * kTileLines * kTileLine;
    for (int64_t b = 0; b < blocks; b += 2) {
        const char* at = (const char*)weights + b * block;
        const char* next = blocks - b >= 4 ? at + 2 * block : nullptr;
        const bool two = blocks - b > 1;
        strip_blocks(rows, x, {at, next, block, two, nullptr, 0}, tiles, [&](int64_t row, vf first, vf second) {
            put(row, b, first);
            if (two) put(row, b + 1, second);
        });
    }
}

template <class Put>
static void strip_pairs(int64_t rows, const char* x, const bf16* weights, int64_t apart, int64_t blocks, int64_t tiles,
                        const Put& put) {
    const int64_t block = tiles * kTileLines * kTileLine;
    for (int64_t b = 0; b < blocks; b++) {
        const char* at = (const char*)weights + b * block;
        strip_blocks(rows, x, {at, blocks - b > 1 ? at + block : nullptr, apart * block, true, nullptr, 0}, tiles,
                     [&](int64_t row, vf first, vf second) { put(row, b, first, second); });
    }
}

// Tiles of one strip times those of one block, or of two that begin `apart` numbers after each other: 16 rows of 16
// numbers in `out`, as many more behind them for the strip's other rows, and the second block's `right` numbers behind.
template <bool kAdd, bool TwoRows, bool TwoBlocks>
SG_INLINE void multiply_strip(const bf16* x, const bf16* w, int64_t apart, int64_t tiles, float* out, int64_t right) {
    constexpr int64_t size = kTileLines * kLanes;
    if constexpr (kAdd) {
        load_sums<TwoRows, TwoBlocks>(out, kTileLine, right, size);
    } else {
        zero_sums<TwoRows, TwoBlocks>();
    }
    constexpr int64_t inputs = kTileInputs<bf16>;
    for (int64_t i = 0; i < tiles * inputs; i += inputs)
        tile_step<bf16, TwoRows, TwoBlocks>(x + i * kStrip, kTileLine, w + i * kLanes, apart * (int64_t)sizeof(bf16));
    store_sums<TwoRows, TwoBlocks>(out, kTileLine, right, size);
}

// `out` [blocks][out_rows][16] = x times packed weights, or added to what it has. x lies in whole strips, and of the last
// one 16 rows are read and written or all. Strips and blocks have `size` tiles, of which the first `tiles` count. The
// caller has shapes for 32 rows.
template <bool kAdd>
static void multiply_strips(int64_t rows, const bf16* x, const bf16* w, int64_t size, int64_t blocks, int64_t tiles,
                            float* out, int64_t out_rows) {
    const int64_t block = size * kTileInputs<bf16> * kLanes, right = out_rows * kLanes;
    for (int64_t r = 0; r < rows; r += kStrip)
        for (int64_t b = 0; b < blocks; b += 2) {
            const bf16 *from = x + r * size * kTileInputs<bf16>, *at = w + b * block;
            float* to = out + b * right + r * kLanes;
            const bool two_rows = rows - r > kTileLines, two_blocks = blocks - b > 1;
            if (two_rows && two_blocks)
                multiply_strip<kAdd, true, true>(from, at, block, tiles, to, right);
            else if (two_rows)
                multiply_strip<kAdd, true, false>(from, at, block, tiles, to, right);
            else if (two_blocks)
                multiply_strip<kAdd, false, true>(from, at, block, tiles, to, right);
            else
                multiply_strip<kAdd, false, false>(from, at, block, tiles, to, right);
        }
}

#else

template <class T>
constexpr bool kTiles = false;
SG_INLINE void shape_tiles(int64_t) {}
template <class T, class Put>
SG_INLINE void tile_products(int64_t, const T*, int64_t, const T*, int64_t, int64_t, int64_t, const Put&) {}
template <bool kAdd, class T>
SG_INLINE void multiply_strips(int64_t, const T*, const T*, int64_t, int64_t, int64_t, float*, int64_t) {}

#endif

}  // namespace
