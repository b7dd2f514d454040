// Matrix products with packed weights.
//
// Packed, a weight [outs, ins] is a row of blocks of 16 outputs; a block has the inputs one behind the other, of
// bfloat16 two at a time, each for all 16 outputs:
//
//     bfloat16   [outs / 16][ins / 2][16][2]        float32   [outs / 16][ins][16]
//
// so that one load gives what one number of x (or a pair) is multiplied with, a block is one stretch of memory, and a
// stretch of 32 inputs of a block is a tile of AMX as it stands.
#pragma once

#include "kernels.hpp"
#include "vectors.hpp"

namespace {

constexpr int64_t kAhead = 1024;  // bytes of a weight that are fetched before they are needed

// A step is what one vector of weights holds: a pair of inputs of bfloat16, one input of float32.
template <class T>
struct Step;

template <>
struct Step<bf16> {
    static constexpr int kInputs = 2;
    typedef vu Weights;
#ifdef __AVX512BF16__
    typedef vu Input;
    SG_INLINE Input input(const bf16* x) {
        uint32_t pair;
        memcpy(&pair, x, 4);
        return splat_u(pair);
    }
    SG_INLINE vf add(vf acc, Input x, Weights w) { return dot_pairs(acc, x, w); }
#else
    struct Input {
        vf first, second;
    };
    SG_INLINE Input input(const bf16* x) { return {splat(single(x[0])), splat(single(x[1]))}; }
    SG_INLINE vf add(vf acc, Input x, Weights w) { return acc + x.first * firsts(w) + x.second * seconds(w); }
#endif
};

template <>
struct Step<float> {
    static constexpr int kInputs = 1;
    typedef vf Weights;
    typedef vf Input;
    SG_INLINE Input input(const float* x) { return splat(*x); }
    SG_INLINE vf add(vf acc, Input x, Weights w) { return acc + x * w; }
};

// R rows of x times B blocks: acc += x w. `x_stride` between rows of x, `block` between blocks, in numbers.
template <class T, int R, int B>
SG_INLINE void multiply(vf acc[R][B], const T* x, int64_t x_stride, const T* w, int64_t block, int64_t ins) {
    constexpr int kInputs = Step<T>::kInputs;
    for (int64_t i = 0; i < ins; i += kInputs) {
        typename Step<T>::Weights weights[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            const T* at = w + b * block + i * kLanes;
            weights[b] = load<typename Step<T>::Weights>(at);
            __builtin_prefetch((const char*)at + kAhead, 0, 3);
        }
#pragma GCC unroll 32
        for (int r = 0; r < R; r++) {
            const typename Step<T>::Input input = Step<T>::input(x + r * x_stride + i);
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) acc[r][b] = Step<T>::add(acc[r][b], input, weights[b]);
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

template <int R, int B>
SG_INLINE void write(const vf acc[R][B], const Written& to) {
    for (int b = 0; b < B; b++) {
        vf bias = vf{};
        if (to.bias)
            bias = to.bias_type ? load_floats((const bf16*)to.bias + b * kLanes)
                                : load_floats((const float*)to.bias + b * kLanes);
        for (int r = 0; r < R; r++) {
            const int64_t at = r * to.stride + b * kLanes;
            if (to.out_type)
                store_floats((bf16*)to.out + at, acc[r][b] + bias);
            else
                store_floats((float*)to.out + at, acc[r][b] + bias);
        }
    }
}

template <class T, int R, int B>
static __attribute__((noinline)) void tile(const T* x, int64_t x_stride, const T* w, int64_t block, int64_t ins,
                                           const Written& to) {
    vf acc[R][B];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) acc[r][b] = vf{};
    multiply<T, R, B>(acc, x, x_stride, w, block, ins);
    write<R, B>(acc, to);
}

#ifdef __AVX512F__
constexpr int kWideRows = 6, kWideBlocks = 4;
#else
constexpr int kWideRows = 2, kWideBlocks = 2;
#endif

template <class T, int B>
static void few_rows(int64_t rows, const T* x, int64_t x_stride, const T* w, int64_t block, int64_t ins,
                     const Written& to) {
    switch (rows) {
        case 1: return tile<T, 1, B>(x, x_stride, w, block, ins, to);
        case 2: return tile<T, 2, B>(x, x_stride, w, block, ins, to);
#ifdef __AVX512F__
        case 3: return tile<T, 3, B>(x, x_stride, w, block, ins, to);
        case 4: return tile<T, 4, B>(x, x_stride, w, block, ins, to);
        case 5: return tile<T, 5, B>(x, x_stride, w, block, ins, to);
        case 6: return tile<T, 6, B>(x, x_stride, w, block, ins, to);
#endif
    }
}

#ifdef __AVX512F__
// Many rows by one block: weights that come from memory are used for all rows while the next are on their way.
template <class T>
static void one_block(int64_t rows, const T* x, int64_t x_stride, const T* w, int64_t ins, const Written& to) {
    switch (rows) {
#define SG_ROWS(n) \
    case n: return tile<T, n, 1>(x, x_stride, w, 0, ins, to);
        SG_ROWS(7) SG_ROWS(8) SG_ROWS(9) SG_ROWS(10) SG_ROWS(11) SG_ROWS(12) SG_ROWS(13) SG_ROWS(14) SG_ROWS(15)
        SG_ROWS(16) SG_ROWS(17) SG_ROWS(18) SG_ROWS(19) SG_ROWS(20) SG_ROWS(21) SG_ROWS(22) SG_ROWS(23) SG_ROWS(24)
#undef SG_ROWS
    }
}
constexpr int64_t kTallRows = 24;
#else
constexpr int64_t kTallRows = 0;
#endif

// All rows times `blocks` blocks.
template <class T>
static void panel(int64_t rows, const T* x, int64_t x_stride, const T* w, int64_t block, int64_t blocks, int64_t ins,
                  const Written& to) {
#ifdef __AVX512F__
    if (rows > kWideRows && rows <= kTallRows) {
        for (int64_t b = 0; b < blocks; b++) one_block<T>(rows, x, x_stride, w + b * block, ins, moved(to, 0, b));
        return;
    }
#endif
    for (int64_t b = 0; b < blocks;) {
        const bool wide = blocks - b >= kWideBlocks;
        for (int64_t r = 0; r < rows; r += kWideRows) {
            const int64_t count = least(kWideRows, rows - r);
            const T* from = x + r * x_stride;
            if (wide)
                few_rows<T, kWideBlocks>(count, from, x_stride, w + b * block, block, ins, moved(to, r, b));
            else
                few_rows<T, 1>(count, from, x_stride, w + b * block, block, ins, moved(to, r, b));
        }
        b += wide ? kWideBlocks : 1;
    }
}

template <class T>
static void product_piece(const sglite::Product& p, int64_t piece) {
    const int64_t all_blocks = p.weight.outs / kLanes, block = kLanes * p.weight.ins;
    const int64_t columns = (all_blocks + p.block_step - 1) / p.block_step;
    const int64_t first = piece % columns * p.block_step, row = piece / columns * p.row_step;
    const int64_t size = p.out_type ? 2 : 4;
    Written to;
    to.out = (char*)p.out + (row * p.weight.outs + first * kLanes) * size;
    to.stride = p.weight.outs;
    to.bias = p.bias ? (const char*)p.bias + first * kLanes * (int64_t)sizeof(T) : nullptr;
    to.out_type = p.out_type;
    to.bias_type = p.weight.kind;
    panel<T>(least(p.row_step, p.rows - row), (const T*)p.x + row * p.x_stride, p.x_stride,
             (const T*)p.weight.data + first * block, block, least(p.block_step, all_blocks - first), p.weight.ins, to);
}

static void product(void* job, int64_t piece, int) {
    const sglite::Product& p = *(const sglite::Product*)job;
    if (p.weight.kind)
        product_piece<bf16>(p, piece);
    else
        product_piece<float>(p, piece);
}

}  // namespace
