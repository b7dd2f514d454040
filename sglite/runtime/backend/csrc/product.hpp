// Matrix products with packed weights.
//
// Packed, a weight [outs, ins] is a row of blocks of 16 outputs; a block has the inputs one behind the other, of
// bfloat16 two at a time, each for all 16 outputs:
//
//     bfloat16   [outs / 16][ins / 2][16][2]        float32   [outs / 16][ins][16]
//
// so that one load gives what one number of x (or a pair) is multiplied with, a block is one stretch of memory, and a
// stretch of 32 inputs of a block is a tile of AMX as it stands.
//
// A tile is some rows of x times some blocks, its sums in registers from the first input to the last. Few rows are read
// as they lie; more are arranged in groups first, [steps][rows of the group], because rows that lie a power of two
// apart fall on the same lines of the cache.
#pragma once

#include "activation.hpp"
#include "amx.hpp"
#include "kernels.hpp"
#include "vectors.hpp"

namespace {

constexpr int64_t kVectorBytes = 64;
// Bytes of a weight that are fetched before they are needed: with few rows memory sets the pace, with more there is time.
constexpr int64_t kAhead = 1024, kFarAhead = 4096;
constexpr int kAheadRows = 4;  // up to which it is few
constexpr int kFarRows = 8;    // up to which they are fetched no nearer than the second cache

// The floats of one register, and the registers that make 16 of them. Sums are kept in these: of wider vectors the
// compiler keeps arrays in memory.
#ifdef __AVX512F__
typedef vf wf;
typedef vu wu;
SG_INLINE vf joined(const wf parts[1]) { return parts[0]; }
#else
typedef vf8 wf;
typedef uint32_t wu __attribute__((vector_size(32)));
SG_INLINE vf joined(const wf parts[2]) {
    return __builtin_shufflevector(parts[0], parts[1], 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#endif
constexpr int kParts = kVectorBytes / (int)sizeof(wf);

// Tiles that there are registers for: a few rows of x as they lie; groups of rows, from some rows on with fewer blocks.
template <int Few, int FewBlocks, int Least, int Mid, int MidBlocks, int Most, int MostBlocks>
struct TileSizes {
    static constexpr int kFewRows = Few, kFewBlocks = FewBlocks, kLeastRows = Least, kMidRows = Mid,
                         kMidBlocks = MidBlocks, kGroupRows = Most, kTallBlocks = MostBlocks;
};

// A step is what one vector of weights holds: a pair of inputs of bfloat16, one input of float32. It becomes some
// terms, each of which is multiplied with one number of x. Up to `kMostArranged` rows it pays to arrange them: more do
// not stay in the cache, which matters where registers are wide and numbers are not widened on the way.
template <class T>
struct Step;

#ifdef __AVX512F__
typedef TileSizes<6, 4, 6, 9, 3, 12, 2> DenseSizes;
#else
typedef TileSizes<2, 2, 2, 4, 1, 4, 1> DenseSizes;
#endif

template <>
struct Step<float> : DenseSizes {
    static constexpr int kInputs = 1, kTerms = 1;
    static constexpr int64_t kMostArranged = kParts == 1 ? 96 : INT64_MAX;
    typedef wf Weights;
    typedef float Arranged;
    SG_INLINE Arranged arrange(const float* x) { return *x; }
    SG_INLINE void terms(Weights w, wf to[kTerms]) { to[0] = w; }
    SG_INLINE void add(wf& acc, Arranged x, const wf terms[kTerms]) { acc += x * terms[0]; }
};

#ifdef __AVX512BF16__
template <>
struct Step<bf16> : DenseSizes {
    static constexpr int kInputs = 2, kTerms = 1;
    static constexpr int64_t kMostArranged = 96;
    typedef wu Weights;
    typedef uint32_t Arranged;
    SG_INLINE Arranged arrange(const bf16* x) {
        uint32_t pair;
        memcpy(&pair, x, 4);
        return pair;
    }
    SG_INLINE void terms(Weights w, wf to[kTerms]) { to[0] = (wf)w; }
    SG_INLINE void add(wf& acc, Arranged x, const wf terms[kTerms]) { acc = dot_pairs(acc, splat_u(x), (wu)terms[0]); }
};
#else
#ifdef __AVX512F__
typedef TileSizes<4, 4, 5, 12, 2, 12, 2> PairSizes;
#else
typedef DenseSizes PairSizes;
#endif

template <>
struct Step<bf16> : PairSizes {
    static constexpr int kInputs = 2, kTerms = 2;
    static constexpr int64_t kMostArranged = INT64_MAX;
    typedef wu Weights;
    struct Arranged {
        float first, second;
    };
    SG_INLINE Arranged arrange(const bf16* x) { return {single(x[0]), single(x[1])}; }
    SG_INLINE void terms(Weights w, wf to[kTerms]) {
        to[0] = (wf)(w << 16);
        to[1] = (wf)(w & 0xffff0000u);
    }
    SG_INLINE void add(wf& acc, Arranged x, const wf terms[kTerms]) {
        acc += x.first * terms[0];
        acc += x.second * terms[1];
    }
};
#endif

// Blocks that the largest group of a product is multiplied with at once.
template <class T>
SG_INLINE int64_t group_blocks(int64_t rows, int64_t groups) {
    return (rows + groups - 1) / groups <= Step<T>::kMidRows ? Step<T>::kMidBlocks : Step<T>::kTallBlocks;
}

// Rows of x as they lie, `stride` numbers apart.
template <class T>
struct Rows {
    const T* x;
    int64_t stride;
    SG_INLINE typename Step<T>::Arranged at(const Rows& rows, int64_t step, int r) {
        return Step<T>::arrange(rows.x + r * rows.stride + step * Step<T>::kInputs);
    }
};

// A group of R rows, arranged.
template <class T, int R>
struct Group {
    const typename Step<T>::Arranged* x;
    SG_INLINE typename Step<T>::Arranged at(const Group& group, int64_t step, int r) { return group.x[step * R + r]; }
};

// R rows times B blocks, `block` numbers apart: acc += x w.
template <class T, int R, int B, class X>
SG_INLINE void multiply(wf acc[R][B][kParts], const X& x, const T* w, int64_t block, int64_t steps) {
    constexpr int kNear = R <= kFarRows ? 2 : 3;
    constexpr int64_t kNext = R <= kAheadRows ? kAhead : kFarAhead;
    // Where a block ends, what comes next in memory is the next block, and that is read already.
    const int64_t beyond = kNext + (B - 1) * block * (int64_t)sizeof(T);
    int64_t end = most(0, steps - kNext / kVectorBytes), ahead = kNext;
    for (int64_t i = 0; i < steps; end = steps, ahead = beyond) {
        for (; i < end; i++) {
            wf terms[B][kParts][Step<T>::kTerms];
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) {
                const char* at = (const char*)(w + b * block) + i * kVectorBytes;
#pragma GCC unroll 2
                for (int p = 0; p < kParts; p++)
                    Step<T>::terms(load<typename Step<T>::Weights>(at + p * sizeof(wf)), terms[b][p]);
                __builtin_prefetch(at + ahead, 0, kNear);
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const typename Step<T>::Arranged input = X::at(x, i, r);
#pragma GCC unroll 8
                for (int b = 0; b < B; b++)
#pragma GCC unroll 2
                    for (int p = 0; p < kParts; p++) Step<T>::add(acc[r][b][p], input, terms[b][p]);
            }
        }
    }
}

// What becomes of the sums: rounded to the result's type, with the bias.
struct Written {
    void* out;  // at the first row and block
    int64_t stride;
    const void* bias;  // at the first block, or null
    int32_t out_type, bias_type;
};

// The same at another row and block of the result.
SG_INLINE Written moved(const Written& to, int64_t row, int64_t block) {
    Written there = to;
    there.out = (char*)to.out + (row * to.stride + block * kLanes) * (to.out_type ? 2 : 4);
    if (to.bias) there.bias = (const char*)to.bias + block * kLanes * (to.bias_type ? 2 : 4);
    return there;
}

SG_INLINE void write_block(vf sums, const Written& to, int64_t row, int64_t block) {
    if (to.bias)
        sums += to.bias_type ? load_floats((const bf16*)to.bias + block * kLanes)
                             : load_floats((const float*)to.bias + block * kLanes);
    const int64_t at = row * to.stride + block * kLanes;
    if (to.out_type)
        store_floats((bf16*)to.out + at, sums);
    else
        store_floats((float*)to.out + at, sums);
}

// The lines that a tile's results go to, which are far away where there are many.
template <int R, int B>
SG_INLINE void fetch_result(const Written& to) {
    const int64_t size = to.out_type ? 2 : 4;
    for (int r = 0; r < R; r++)
        for (int64_t at = 0; at < B * kLanes * size; at += kVectorBytes)
            __builtin_prefetch((const char*)to.out + r * to.stride * size + at, 1, 3);
}

template <int R, int B>
SG_INLINE void write(const vf acc[R][B], const Written& to) {
    for (int b = 0; b < B; b++)
        for (int r = 0; r < R; r++) write_block(acc[r][b], to, r, b);
}

template <class T, int R, int B, class X>
static __attribute__((noinline)) void tile(X x, const T* w, int64_t block, int64_t ins, const Written& to) {
    wf acc[R][B][kParts];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++)
            for (int p = 0; p < kParts; p++) acc[r][b][p] = wf{};
    fetch_result<R, B>(to);
    multiply<T, R, B>(acc, x, w, block, ins / Step<T>::kInputs);
    vf sums[R][B];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) sums[r][b] = joined(acc[r][b]);
    write<R, B>(sums, to);
}

// R rows or fewer, as they lie, times B blocks.
template <class T, int B, int R = Step<T>::kFewRows>
static void few_rows(int64_t rows, Rows<T> x, const T* w, int64_t block, int64_t ins, const Written& to) {
    if (rows == R) return tile<T, R, B>(x, w, block, ins, to);
    if constexpr (R > 1) few_rows<T, B, R - 1>(rows, x, w, block, ins, to);
}

// All rows times `blocks` blocks.
template <class T>
static void panel(int64_t rows, const T* x, int64_t x_stride, const T* w, int64_t block, int64_t blocks, int64_t ins,
                  const Written& to) {
    if constexpr (kTiles<T>) {
        if (rows >= kLeastTileRows) {
            const auto put = [&](int64_t row, int64_t b, vf sums) { write_block(sums, to, row, b); };
            return tile_products(rows, x, x_stride, w, block, blocks, ins, put);
        }
    }
    constexpr int64_t kFewRows = Step<T>::kFewRows, kFewBlocks = Step<T>::kFewBlocks, kPair = 2;
    for (int64_t b = 0; b < blocks;) {
        const int64_t some = blocks - b >= kFewBlocks ? kFewBlocks : least(kPair, blocks - b);
        for (int64_t r = 0; r < rows; r += kFewRows) {
            const int64_t count = least(kFewRows, rows - r);
            const Rows<T> these = {x + r * x_stride, x_stride};
            const Written there = moved(to, r, b);
            if (some == kFewBlocks)
                few_rows<T, kFewBlocks>(count, these, w + b * block, block, ins, there);
            else if (some == kPair)
                few_rows<T, kPair>(count, these, w + b * block, block, ins, there);
            else
                few_rows<T, 1>(count, these, w + b * block, block, ins, there);
        }
        b += some;
    }
}

// R rows or fewer, arranged, times B blocks.
template <class T, int B, int R = B == Step<T>::kTallBlocks || B == 1 ? Step<T>::kGroupRows : Step<T>::kMidRows>
static void one_group(int64_t rows, const void* x, const T* w, int64_t block, int64_t ins, const Written& to) {
    // With the fewer blocks there are groups of at least the middle size, and those beside it that are one smaller.
    constexpr bool kTall = B == Step<T>::kTallBlocks && B != Step<T>::kMidBlocks && B != 1;
    if (rows == R) return tile<T, R, B>(Group<T, R>{(const typename Step<T>::Arranged*)x}, w, block, ins, to);
    if constexpr (R > (kTall ? Step<T>::kMidRows : Step<T>::kLeastRows))
        one_group<T, B, R - 1>(rows, x, w, block, ins, to);
}

// The first row of a group: their sizes differ by one at most, or they are strips and the last one is shorter.
SG_INLINE int64_t group_start(const sglite::Product& p, int64_t group) {
    return p.strip ? least(group * p.strip, p.rows) : group * p.rows / p.groups;
}

// Groups from `first` up to `end` times B blocks.
template <class T, int B>
static void groups_by_blocks(const sglite::Product& p, int64_t first, int64_t end, const T* w, const Written& to) {
    for (int64_t g = first; g < end; g++) {
        const int64_t row = group_start(p, g), rows = group_start(p, g + 1) - row;
        const auto* x = (const typename Step<T>::Arranged*)p.arranged + row * (p.weight.ins / Step<T>::kInputs);
        one_group<T, B>(rows, x, w, kLanes * p.weight.ins, p.weight.ins,
                        moved(to, row - group_start(p, first), 0));
    }
}

// The same times all blocks: those that a group takes at once are read from memory for the first and from the cache for
// the others.
template <class T>
static void arranged_panel(const sglite::Product& p, int64_t first, int64_t end, const T* w, int64_t blocks,
                           const Written& to) {
    constexpr int kMid = Step<T>::kMidBlocks, kTall = Step<T>::kTallBlocks;
    const int64_t wide = group_blocks<T>(p.rows, p.groups);
    for (int64_t b = 0; b < blocks;) {
        const T* at = w + b * kLanes * p.weight.ins;
        const Written there = moved(to, 0, b);
        const int64_t some = blocks - b >= wide ? wide : 1;
        if (some == kTall)
            groups_by_blocks<T, kTall>(p, first, end, at, there);
        else if (some == kMid)
            groups_by_blocks<T, kMid>(p, first, end, at, there);
        else
            groups_by_blocks<T, 1>(p, first, end, at, there);
        b += some;
    }
}

// Outputs that a product has a result of its own for.
SG_INLINE int64_t outs_of(const sglite::Product& p) { return p.gated ? p.weight.outs / 2 : p.weight.outs; }

// What one piece computes: rows (or groups of them) and blocks.
struct Piece {
    int64_t row, end, block, blocks;

    SG_INLINE Piece of(const sglite::Product& p, int64_t number) {
        const int64_t all = outs_of(p) / kLanes, columns = (all + p.block_step - 1) / p.block_step;
        const int64_t block = number % columns * p.block_step, row = number / columns * p.row_step;
        return {row, least(row + p.row_step, p.groups ? p.groups : p.rows), block, least(p.block_step, all - block)};
    }
};

// The same of strips, which are arranged for tiles. With an activation a piece's blocks are gates, and as many ups lie
// behind all gates; both are rounded before they meet, as if they had been written.
static void strips(const sglite::Product& p, const Piece& piece, const bf16* w, const Written& to) {
#if defined(SG_TILES) || defined(SG_TILES_IMITATED)
    const int64_t row = group_start(p, piece.row), tiles = p.weight.ins / kTileInputs<bf16>;
    const int64_t rows = group_start(p, piece.end) - row;
    const char* x = (const char*)p.arranged + row * tiles * kTileLine;
    if (!p.gated)
        return strip_products(rows, x, w, piece.blocks, tiles,
                              [&](int64_t r, int64_t b, vf sums) { write_block(sums, to, r, b); });
    const int64_t apart = p.weight.outs / kLanes / 2;
    strip_pairs(rows, x, w, apart, piece.blocks, tiles, [&](int64_t r, int64_t b, vf gate, vf up) {
        if (to.bias) {
            const bf16* bias = (const bf16*)to.bias + b * kLanes;
            gate += load_floats(bias), up += load_floats(bias + apart * kLanes);
        }
        const vf both = activated(as_written(gate), as_written(up), p.gated - 1);
        store_floats((bf16*)to.out + r * to.stride + b * kLanes, both);
    });
#endif
}

static void strips(const sglite::Product&, const Piece&, const float*, const Written&) {}

// `to` is at the piece's first row and block.
template <class T>
static void compute(const sglite::Product& p, const Piece& piece, const Written& to) {
    const int64_t block = kLanes * p.weight.ins;
    const T* w = (const T*)p.weight.data + piece.block * block;
    if (p.strip)
        strips(p, piece, w, to);
    else if (p.groups)
        arranged_panel<T>(p, piece.row, piece.end, w, piece.blocks, to);
    else
        panel<T>(piece.end - piece.row, (const T*)p.x + piece.row * p.x_stride, p.x_stride, w, block, piece.blocks,
                 p.weight.ins, to);
}

template <class T>
static void product_piece(const sglite::Product& p, int64_t number) {
    const Piece piece = Piece::of(p, number);
    const Written all = {p.out, p.out_stride, p.bias, p.out_type, p.weight.kind};
    const int64_t row = p.groups ? group_start(p, piece.row) : piece.row;
    compute<T>(p, piece, moved(all, row, piece.block));
}

static void product(void* job, int64_t piece, int) {
    const sglite::Product& p = *(const sglite::Product*)job;
    if (p.weight.kind)
        product_piece<bf16>(p, piece);
    else
        product_piece<float>(p, piece);
}

// Some steps of a group, those of all its rows side by side.
template <class T>
static void arrange_piece(const sglite::Product& p, int64_t number) {
    constexpr int64_t kSome = 16;  // steps of one line of x
    const int64_t steps = p.weight.ins / Step<T>::kInputs, cuts = (steps + p.step_step - 1) / p.step_step;
    const int64_t group = number / cuts, from = number % cuts * p.step_step;
    const int64_t end = least(steps, from + p.step_step);
    const int64_t row = group_start(p, group), rows = group_start(p, group + 1) - row;
    const T* x = (const T*)p.x + row * p.x_stride;
    if (p.strip) {
        constexpr int64_t kInTile = kVectorBytes / 4;  // steps
        for (int64_t i = from; i < end; i += kInTile)
            for (int64_t r = 0; r < rows; r++)
                store((char*)p.arranged + (row * steps / kInTile + i / kInTile * rows + r) * kVectorBytes,
                      load<vu>(x + r * p.x_stride + i * Step<T>::kInputs));
        return;
    }
    auto* to = (typename Step<T>::Arranged*)p.arranged + row * steps;
    for (int64_t i = from; i < end; i += kSome)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t s = i; s < least(i + kSome, end); s++)
                to[s * rows + r] = Step<T>::arrange(x + r * p.x_stride + s * Step<T>::kInputs);
}

static void arrange(void* job, int64_t piece, int) {
    const sglite::Product& p = *(const sglite::Product*)job;
    if (p.weight.kind)
        arrange_piece<bf16>(p, piece);
    else
        arrange_piece<float>(p, piece);
}

template <class T>
static sglite::Cut cut_of(int64_t rows, int64_t ins) {
    if (kTiles<T> && rows >= kLeastTileRows) {
        if (rows <= kMostTileRows || ins % (kVectorBytes / (int64_t)sizeof(T))) return {0, 2, 0, 0, 0};
        return {(rows + kStrip - 1) / kStrip, 2, sizeof(T), kStrip, kPanelRows};
    }
    if (rows <= Step<T>::kFewRows || rows > Step<T>::kMostArranged) return {0, Step<T>::kFewBlocks, 0, 0, 0};
    const int64_t groups = (rows + Step<T>::kGroupRows - 1) / Step<T>::kGroupRows;
    return {groups, group_blocks<T>(rows, groups), (int64_t)sizeof(typename Step<T>::Arranged) / Step<T>::kInputs, 0, 0};
}

static sglite::Cut cut(int64_t rows, int64_t ins, int32_t kind) {
    return kind ? cut_of<bf16>(rows, ins) : cut_of<float>(rows, ins);
}

}  // namespace
