// Products with codes: weights of eight or four bits with scales.
//
// Packed as other weights are (product.hpp), in steps of 32 bits for each of a block's 16 outputs:
//
//     eight bits   [outs / 16][ins / 4][16][4]    each plus 128, so that they are unsigned
//     four bits    [outs / 16][ins / 8][16][8]    each plus 8; even inputs in the low 16 bits, odd ones in the high
//
// Eight bits are multiplied with rows of x in whole numbers (Inputs) and the sums are exact: with every code too large
// by 128 they are too large by 128 times the sum of the row's codes, from which they therefore start.
#pragma once

#include "kernels.hpp"
#include "nibbles.hpp"
#include "product.hpp"
#include "vectors.hpp"

namespace {

// Four inputs of an output and of a row: products of unsigned codes and signed numbers, added to 32 bits without limits.
#ifdef __AVX512VNNI__
constexpr int64_t kCodeBytes = 1;
typedef vu Four;
typedef vu FourCodes;
SG_INLINE Four four(const char* x) {
    uint32_t all;
    memcpy(&all, x, 4);
    return splat_u(all);
}
SG_INLINE FourCodes four_codes(const char* w) { return load<vu>(w); }
SG_INLINE vi add_four(vi acc, Four x, FourCodes w) {
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
}
#else
// Numbers of 16 bits, the even inputs and the odd ones: instructions on bytes stop at 16 bits.
constexpr int64_t kCodeBytes = 2;
struct Four {
    vu even, odd;
};
typedef Four FourCodes;
SG_INLINE Four four(const char* x) {
    uint32_t even, odd;
    memcpy(&even, x, 4);
    memcpy(&odd, x + 4, 4);
    return {splat_u(even), splat_u(odd)};
}
SG_INLINE FourCodes four_codes(const char* w) {
    const vu all = load<vu>(w);
    return {all & 0x00ff00ffu, (all >> 8) & 0x00ff00ffu};
}
SG_INLINE vi pairs_of(vu a, vu b) {
#ifdef __AVX512BW__
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
    __m256i p[2], q[2];
    memcpy(p, &a, sizeof p);
    memcpy(q, &b, sizeof q);
    const __m256i both[2] = {_mm256_madd_epi16(p[0], q[0]), _mm256_madd_epi16(p[1], q[1])};
    return load<vi>(both);
#endif
}
SG_INLINE vi add_four(vi acc, Four x, FourCodes w) { return acc + pairs_of(x.even, w.even) + pairs_of(x.odd, w.odd); }
#endif

SG_INLINE vi whole(vf x) {
#ifdef __AVX512F__
    return (vi)_mm512_cvtps_epi32((__m512)x);
#else
    __m256 halves[2];
    memcpy(halves, &x, sizeof halves);
    const __m256i both[2] = {_mm256_cvtps_epi32(halves[0]), _mm256_cvtps_epi32(halves[1])};
    return load<vi>(both);
#endif
}

// Sixteen numbers of 8 bits, or of 16 with the even ones of every four in front.
SG_INLINE void put_codes(char* to, vi x) {
#ifdef __AVX512VNNI__
    typedef int8_t v8 __attribute__((vector_size(16)));
    store(to, __builtin_convertvector(x, v8));
#else
    typedef int16_t v16 __attribute__((vector_size(32)));
    const v16 w = __builtin_convertvector(x, v16);
    store(to, __builtin_shufflevector(w, w, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
#endif
}

// The next sixteen numbers of x, or fewer and zeros.
template <class T>
SG_INLINE vf some_floats(const T* x, int64_t count) {
    if (count >= kLanes) return load_floats(x);
    float few[kLanes] = {};
    for (int64_t i = 0; i < count; i++) few[i] = one(x[i]);
    return load_floats(few);
}

// A row's numbers of one group; see rows_in_codes in cpu_quantised.py, which this equals bit for bit.
template <class T>
SG_INLINE void code_group(const T* x, int64_t count, char* to, float* scale, int32_t* sum) {
    vi large = vi{};  // as whole numbers magnitudes are in the same order, and NaN is above all
    for (int64_t i = 0; i < count; i += kLanes) {
        const vi size = (vi)some_floats(x + i, count - i) & 0x7fffffff;
        large = (large & (large > size)) | (size & ~(large > size));
    }
    int32_t top = 0;
    for (int i = 0; i < kLanes; i++) top = large[i] > top ? large[i] : top;
    float largest;
    memcpy(&largest, &top, 4);
    const bool finite = top < 0x7f800000, counts = finite && largest >= 0x1p-100f;
    const vf factor = splat(counts ? 127.0f / largest : 0.0f);
    vi total = vi{};
    for (int64_t i = 0; i < count; i += kLanes) {
        // Of the last there may be more than the group has: zeros, over which the next group's are written.
        const vi codes = counts ? whole(some_floats(x + i, count - i) * factor) : vi{};
        put_codes(to + i * kCodeBytes, codes);
        total += codes;
    }
    *scale = counts ? largest / 127.0f : finite ? 0.0f : __builtin_nanf("");
    *sum = 0;
    for (int i = 0; i < kLanes; i++) *sum += 128 * total[i];
}

template <class T>
static void code_row(const sglite::Inputs& p, int64_t row) {
    const int64_t groups = p.ins / p.group;
    for (int64_t g = 0; g < groups; g++)
        code_group((const T*)p.x + row * p.x_stride + g * p.group, p.group,
                   p.codes + row * p.stride + g * p.group * kCodeBytes, p.scales + row * groups + g,
                   (int32_t*)p.sums + row * groups + g);
}

template <class T>
static void sum_row(const sglite::Inputs& p, int64_t row) {
    const int64_t groups = p.ins / p.group;
    for (int64_t g = 0; g < groups; g++) {
        const T* x = (const T*)p.x + row * p.x_stride + g * p.group;
        vf total = vf{};
        for (int64_t i = 0; i < p.group; i += kLanes) total += some_floats(x + i, p.group - i);
        ((float*)p.sums)[row * groups + g] = sum(total);
    }
}

static void inputs(void* job, int64_t piece, int) {
    const sglite::Inputs& p = *(const sglite::Inputs*)job;
    for (int64_t row = piece * p.row_step; row < least((piece + 1) * p.row_step, p.rows); row++) {
        if (p.kind == 2)
            p.type ? code_row<bf16>(p, row) : code_row<float>(p, row);
        else
            p.type ? sum_row<bf16>(p, row) : sum_row<float>(p, row);
    }
}

// What a tile of codes of eight bits is made of, at its first row and block.
struct WholeTile {
    const char* x;
    int64_t x_stride;
    const float* x_scales;  // [rows][groups]
    const int32_t* x_sums;  // likewise
    const char* w;
    int64_t block;  // bytes
    const float* scales;
    int64_t groups, steps;  // steps of a group
};

template <int R, int B>
static __attribute__((noinline)) void whole_tile(const WholeTile& t, const Written& to) {
    constexpr int kNear = R <= kFarRows ? 2 : 3;
    constexpr int64_t kFar = B > 2 ? kAhead : 2 * kAhead;
    vf total[R][B];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) total[r][b] = vf{};
    for (int64_t g = 0; g < t.groups; g++) {
        vi acc[R][B];
        for (int r = 0; r < R; r++)
            for (int b = 0; b < B; b++) acc[r][b] = vi{} - t.x_sums[r * t.groups + g];
        for (int64_t i = g * t.steps; i < (g + 1) * t.steps; i++) {
            FourCodes weights[B];
            // Beyond the end of a block is the next that is read, which is not the one behind it.
            const int64_t ahead = kFar + (i * 64 + kFar < t.block ? 0 : (B - 1) * t.block);
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) {
                const char* at = t.w + b * t.block + i * 64;
                weights[b] = four_codes(at);
                __builtin_prefetch(at + ahead, 0, kNear);
            }
#pragma GCC unroll 32
            for (int r = 0; r < R; r++) {
                const Four input = four(t.x + r * t.x_stride + i * 4 * kCodeBytes);
#pragma GCC unroll 8
                for (int b = 0; b < B; b++) acc[r][b] = add_four(acc[r][b], input, weights[b]);
            }
        }
        for (int b = 0; b < B; b++) {
            const vf scale = load_floats(t.scales + (b * t.groups + g) * kLanes);
            for (int r = 0; r < R; r++)
                total[r][b] += __builtin_convertvector(acc[r][b], vf) * scale * t.x_scales[r * t.groups + g];
        }
    }
    write<R, B>(total, to);
}

constexpr int kStreamRows = 3;

template <int R, int B>
static void whole_rows(int64_t rows, const WholeTile& t, const Written& to) {
    if (rows == R) return whole_tile<R, B>(t, to);
    if constexpr (R > 1) whole_rows<R - 1, B>(rows, t, to);
}

// `rows` rows times blocks, R and B at a time.
template <int R, int B>
static int64_t whole_panel(int64_t rows, int64_t blocks, const WholeTile& t, const Written& to, int64_t b) {
    for (; b + B <= blocks; b += B)
        for (int64_t r = 0; r < rows; r += R) {
            WholeTile part = t;
            part.x += r * t.x_stride, part.x_scales += r * t.groups, part.x_sums += r * t.groups;
            part.w += b * t.block, part.scales += b * t.groups * kLanes;
            whole_rows<R, B>(least(R, rows - r), part, moved(to, r, b));
        }
    return b;
}

static void whole_product(const sglite::Product& p, int64_t first, int64_t blocks, int64_t row, int64_t rows,
                          const Written& to) {
    const sglite::Inputs& in = *p.inputs;
    const int64_t groups = p.weight.ins / p.weight.group, block = kLanes * p.weight.ins;
    const WholeTile t = {in.codes + row * in.stride, in.stride, in.scales + row * groups, (const int32_t*)in.sums + row * groups,
                         (const char*)p.weight.data + first * block, block, p.weight.scales + first * groups * kLanes,
                         groups, p.weight.group / 4};
    if constexpr (kTiles<uint8_t>) {
        if (rows >= kLeastTileRows && groups == 1) {
            const auto put = [&](int64_t r, int64_t b, vf sums) {
                const vf whole = __builtin_convertvector((vi)sums - t.x_sums[r], vf);
                write_block(whole * load_floats(t.scales + b * kLanes) * t.x_scales[r], to, r, b);
            };
            return tile_products(rows, (const uint8_t*)t.x, t.x_stride, (const uint8_t*)t.w, block, blocks, p.weight.ins,
                                 put);
        }
    }
    int64_t done = 0;
    // Where weights come from memory they are used for all rows at once, of fewer blocks the more rows there are. Where
    // it is memory alone that takes time, they are read as one stream: several side by side are a quarter slower.
#ifdef __AVX512VNNI__
    if (rows <= kStreamRows) {
        whole_panel<kStreamRows, 1>(rows, blocks, t, to, 0);
        return;
    }
    if (rows > 12 && rows <= 24) {
        whole_panel<24, 1>(rows, blocks, t, to, 0);
        return;
    }
    if (rows <= 12) done = whole_panel<12, 2>(rows, blocks, t, to, 0);
#endif
    done = whole_panel<kWideRows, kWideBlocks>(rows, blocks, t, to, done);
    whole_panel<kWideRows, 1>(rows, blocks, t, to, done);
}

static void codes(void* job, int64_t piece, int) {
    const sglite::Product& p = *(const sglite::Product*)job;
    const int64_t all_blocks = p.weight.outs / kLanes, columns = (all_blocks + p.block_step - 1) / p.block_step;
    const int64_t first = piece % columns * p.block_step, row = piece / columns * p.row_step;
    const int64_t blocks = least(p.block_step, all_blocks - first), rows = least(p.row_step, p.rows - row);
    const int64_t size = p.out_type ? 2 : 4, bias_size = p.weight.type ? 2 : 4;
    Written to;
    to.out = (char*)p.out + (row * p.out_stride + first * kLanes) * size;
    to.stride = p.out_stride;
    to.bias = p.bias ? (const char*)p.bias + first * kLanes * bias_size : nullptr;
    to.out_type = p.out_type;
    to.bias_type = p.weight.type;
    if (p.weight.kind == 2)
        whole_product(p, first, blocks, row, rows, to);
    else if (p.weight.type)
        nibble_product<bf16>(p, first, blocks, row, rows, to);
    else
        nibble_product<float>(p, first, blocks, row, rows, to);
}

}  // namespace
