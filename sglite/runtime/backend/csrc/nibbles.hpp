// Products with codes of four bits: the codes become numbers in registers or in the first cache, and sums of a group get
// its scale. How they lie in memory: codes.hpp.
#pragma once

#include "kernels.hpp"
#include "product.hpp"
#include "vectors.hpp"

namespace {

constexpr int64_t kUnpacked = 128;  // inputs of some blocks that are unpacked at once
constexpr int kInStep = 8;          // inputs of 32 bits of codes

// Rows and blocks that are computed at once.
#ifdef __AVX512F__
constexpr int kWideRows = 6, kWideBlocks = 4;
#else
constexpr int kWideRows = 2, kWideBlocks = 2;
#endif

// What is multiplied with codes of four bits, at its first row and block.
template <class T>
struct NibbleTile {
    const T* x;
    int64_t x_stride;
    const float* x_sums;  // [rows][groups] where there are zeros
    const char* w;
    int64_t block;  // bytes
    const float *scales, *zeros;
    int64_t groups, group;
};

// The zeros' share of a group's sums: sum of (code - zero) x = sum of code x - zero * sum of x.
template <class T>
SG_INLINE vf less_zeros(vf sums, const NibbleTile<T>& t, int64_t row, int64_t b, int64_t g) {
    return t.zeros ? sums - load_floats(t.zeros + (b * t.groups + g) * kLanes) * t.x_sums[row * t.groups + g] : sums;
}

// Inputs 2 k and 2 k + 1 of a step, as a packed weight has them.
SG_INLINE vf code(vu words, int shift) { return __builtin_convertvector((vi)((words >> shift) & 15u) - 8, vf); }

SG_INLINE vu code_pairs(vu words, int k) {
#ifdef __AVX512BW__
    // Numbers of 16 bits, twice, so that the bit above a code does not matter.
    typedef uint16_t v16 __attribute__((vector_size(64)));
    const v16 table = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0,      0x3f80, 0x4000,
                       0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
                       0xc000, 0xbf80, 0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    return (vu)_mm512_permutexvar_epi16((__m512i)(words >> (4 * k)), (__m512i)table);
#else
    return ((vu)code(words, 4 * k) >> 16) | ((vu)code(words, 4 * k + 16) & 0xffff0000u);
#endif
}

SG_INLINE void unpack_step(vu words, bf16* to) {
    for (int k = 0; k < 4; k++) store(to + 2 * k * kLanes, code_pairs(words, k));
}

SG_INLINE void unpack_step(vu words, float* to) {
    for (int k = 0; k < 4; k++) {
        store(to + 2 * k * kLanes, code(words, 4 * k));
        store(to + (2 * k + 1) * kLanes, code(words, 4 * k + 16));
    }
}

// R rows times B blocks of unpacked codes: `total` [R][B] += sums * scale. `total_stride` between rows, in vectors.
template <class T, int R, int B>
static __attribute__((noinline)) void stretch_tile(const NibbleTile<T>& t, const T* codes, int64_t from, int64_t count,
                                                   int64_t g, vf* total, int64_t total_stride) {
    wf acc[R][B][kParts];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++)
            for (int p = 0; p < kParts; p++) acc[r][b][p] = wf{};
    multiply<T, R, B>(acc, Rows<T>{t.x + from, t.x_stride}, codes, kUnpacked * kLanes, count / Step<T>::kInputs);
    const bool last = from + count == (g + 1) * t.group;
    for (int b = 0; b < B; b++) {
        const vf scale = load_floats(t.scales + (b * t.groups + g) * kLanes);
        for (int r = 0; r < R; r++) {
            const vf sums = last ? less_zeros(joined(acc[r][b]), t, r, b, g) : joined(acc[r][b]);
            total[r * total_stride + b] += sums * scale;
        }
    }
}

template <class T, int R, int B>
static void stretch_rows(int64_t rows, const NibbleTile<T>& t, const T* codes, int64_t from, int64_t count, int64_t g,
                         vf* total, int64_t total_stride) {
    if (rows == R) return stretch_tile<T, R, B>(t, codes, from, count, g, total, total_stride);
    if constexpr (R > 1) stretch_rows<T, R - 1, B>(rows, t, codes, from, count, g, total, total_stride);
}

// All rows times B blocks, a stretch of inputs after the other.
template <class T, int B>
static void nibble_blocks(int64_t rows, const NibbleTile<T>& t, const Written& to) {
    alignas(64) T codes[B * kUnpacked * kLanes];
    alignas(64) vf total[sglite::kCodeRowStep * B];
    for (int64_t i = 0; i < rows * B; i++) total[i] = vf{};
    for (int64_t from = 0, count; from < t.groups * t.group; from += count) {
        const int64_t g = from / t.group;
        count = least(kUnpacked, (g + 1) * t.group - from);
        for (int b = 0; b < B; b++)
            for (int64_t i = 0; i < count; i += kInStep) {
                const char* at = t.w + b * t.block + (from + i) / kInStep * 64;
                __builtin_prefetch(at + kAhead, 0, 3);
                unpack_step(load<vu>(at), codes + (b * kUnpacked + i) * kLanes);
            }
        if constexpr (kTiles<T>) {
            const bool last = from + count == (g + 1) * t.group;
            const auto put = [&](int64_t r, int64_t b, vf sums) {
                const vf scale = load_floats(t.scales + (b * t.groups + g) * kLanes);
                total[r * B + b] += (last ? less_zeros(sums, t, r, b, g) : sums) * scale;
            };
            tile_products(rows, t.x + from, t.x_stride, codes, kUnpacked * kLanes, B, count, put);
            continue;
        }
        for (int64_t r = 0; r < rows; r += kWideRows) {
            NibbleTile<T> part = t;
            part.x += r * t.x_stride, part.x_sums += r * t.groups;
            stretch_rows<T, kWideRows, B>(least(kWideRows, rows - r), part, codes, from, count, g, total + r * B, B);
        }
    }
    for (int64_t r = 0; r < rows; r++) write<1, B>((const vf(*)[B])(total + r * B), moved(to, r, 0));
}

#ifdef __AVX512BF16__
// Few rows, for which codes are not worth keeping.
template <int R, int B>
static __attribute__((noinline)) void nibble_tile(const NibbleTile<bf16>& t, const Written& to) {
    vf total[R][B];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) total[r][b] = vf{};
    const int64_t steps = t.group / kInStep;
    constexpr int kNear = R <= kFarRows ? 2 : 3, kChains = R * B < 4 ? 4 / (R * B) : 1;
    constexpr int64_t kFar = B > 2 ? kAhead : 2 * kAhead;
    for (int64_t g = 0; g < t.groups; g++) {
        vf acc[kChains][R][B];
        for (int c = 0; c < kChains; c++)
            for (int r = 0; r < R; r++)
                for (int b = 0; b < B; b++) acc[c][r][b] = vf{};
        for (int64_t i = g * steps; i < (g + 1) * steps; i++) {
            vu words[B];
            const int64_t ahead = kFar + (i * 64 + kFar < t.block ? 0 : (B - 1) * t.block);
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) {
                const char* at = t.w + b * t.block + i * 64;
                words[b] = load<vu>(at);
                __builtin_prefetch(at + ahead, 0, kNear);
            }
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                vu pairs[B];
#pragma GCC unroll 8
                for (int b = 0; b < B; b++) pairs[b] = code_pairs(words[b], k);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const vu input = splat_u(Step<bf16>::arrange(t.x + r * t.x_stride + i * kInStep + 2 * k));
#pragma GCC unroll 8
                    for (int b = 0; b < B; b++)
                        acc[k % kChains][r][b] = dot_pairs(acc[k % kChains][r][b], input, pairs[b]);
                }
            }
        }
        for (int b = 0; b < B; b++) {
            const float* at = t.scales + (b * t.groups + g) * kLanes;
            const vf scale = load_floats(at);
            __builtin_prefetch(at + B * t.groups * kLanes, 0, 3);
            for (int r = 0; r < R; r++) {
                vf sums = acc[0][r][b];
#pragma GCC unroll 4
                for (int c = 1; c < kChains; c++) sums += acc[c][r][b];
                total[r][b] += less_zeros(sums, t, r, b, g) * scale;
            }
        }
    }
    write<R, B>(total, to);
}

template <int R, int B>
static void nibble_rows(int64_t rows, const NibbleTile<bf16>& t, const Written& to) {
    if (rows == R) return nibble_tile<R, B>(t, to);
    if constexpr (R > 1) nibble_rows<R - 1, B>(rows, t, to);
}

template <int B>
SG_INLINE bool at_once(int64_t rows, const NibbleTile<bf16>& t, const Written& to) {
    constexpr int kMost = B > 2 ? 2 : 8;
    if (rows > kMost) return false;
    nibble_rows<kMost, B>(rows, t, to);
    return true;
}
#else
template <int B>
SG_INLINE bool at_once(int64_t, const NibbleTile<bf16>&, const Written&) {
    return false;
}
#endif

template <int B>
SG_INLINE bool at_once(int64_t, const NibbleTile<float>&, const Written&) {
    return false;
}

template <class T, int B>
static int64_t nibble_panel(int64_t rows, int64_t blocks, const NibbleTile<T>& t, const Written& to, int64_t b) {
    for (; b + B <= blocks; b += B) {
        NibbleTile<T> part = t;
        part.w += b * t.block, part.scales += b * t.groups * kLanes;
        if (t.zeros) part.zeros += b * t.groups * kLanes;
        const bool few = rows < kLeastTileRows || !kTiles<T>;
        if (!few || !at_once<B>(rows, part, moved(to, 0, b))) nibble_blocks<T, B>(rows, part, moved(to, 0, b));
    }
    return b;
}

template <class T>
static void nibble_product(const sglite::Product& p, int64_t first, int64_t blocks, int64_t row, int64_t rows,
                           const Written& to) {
    const int64_t groups = p.weight.ins / p.weight.group, block = kLanes * p.weight.ins / 2;
    const float* zeros = p.weight.zeros ? p.weight.zeros + first * groups * kLanes : nullptr;
    const NibbleTile<T> t = {(const T*)p.x + row * p.x_stride, p.x_stride, (const float*)p.inputs->sums + row * groups,
                             (const char*)p.weight.data + first * block, block, p.weight.scales + first * groups * kLanes,
                             zeros, groups, p.weight.group};
    int64_t done = 0;
#ifdef __AVX512BF16__
    if (sizeof(T) == 2 && rows == 1) done = nibble_panel<T, 1>(rows, blocks, t, to, 0);  // one stream of memory
#endif
    if (rows > 2 && rows <= (kTiles<T> ? kLeastTileRows - 1 : 8)) done = nibble_panel<T, 2>(rows, blocks, t, to, 0);
    done = nibble_panel<T, kWideBlocks>(rows, blocks, t, to, done);
    nibble_panel<T, 1>(rows, blocks, t, to, done);
}

}  // namespace
