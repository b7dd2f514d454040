// Sixteen floats at a time, in whatever registers the instruction set of this object file has.
//
// Compiled once per instruction set. Everything here and in what includes it has internal linkage and uses no inline
// function of the standard library: the linker would keep one copy of those, of any instruction set, for all.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));
typedef uint16_t vw __attribute__((vector_size(64)));
typedef int8_t vb __attribute__((vector_size(16)));
typedef uint16_t bf16;

constexpr int kLanes = 16;

#define SG_INLINE static inline __attribute__((always_inline))

SG_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SG_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <class V>
SG_INLINE V load(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
SG_INLINE void store(void* to, V v) {
    memcpy(to, &v, sizeof v);
}

SG_INLINE vf splat(float x) { return vf{} + x; }
SG_INLINE vu splat_u(uint32_t x) { return vu{} + x; }
SG_INLINE vf floats(vu bits) { return (vf)bits; }
SG_INLINE vf pick(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
SG_INLINE vi pick(vi mask, vi yes, vi no) { return (yes & mask) | (no & ~mask); }

typedef float vf8 __attribute__((vector_size(32)));

SG_INLINE vf8 low_half(vf x) { return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7); }
SG_INLINE vf8 high_half(vf x) { return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15); }

// Lanes in which something holds; of NaN nothing does. Compilers take comparisons of vectors apart that are longer than
// the processor's.
#ifdef __AVX512F__
typedef __mmask16 Lanes;
SG_INLINE Lanes more(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
SG_INLINE Lanes as_much(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
SG_INLINE Lanes equal(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
SG_INLINE Lanes more(vi a, vi b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
SG_INLINE vf pick(Lanes lanes, vf yes, vf no) { return (vf)_mm512_mask_blend_ps(lanes, (__m512)no, (__m512)yes); }
SG_INLINE vi pick(Lanes lanes, vi yes, vi no) { return (vi)_mm512_mask_blend_epi32(lanes, (__m512i)no, (__m512i)yes); }
SG_INLINE Lanes within(vi x, vi low, vi high) {
    return _mm512_mask_cmplt_epi32_mask(_mm512_cmple_epi32_mask((__m512i)low, (__m512i)x), (__m512i)x, (__m512i)high);
}
SG_INLINE uint32_t bits_of(Lanes lanes) { return lanes; }
SG_INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
SG_INLINE vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#else
typedef vi Lanes;
SG_INLINE vf joined(__m256 low, __m256 high) {
    const __m256 both[2] = {low, high};
    vf x;
    memcpy(&x, both, sizeof x);
    return x;
}
#define SG_HALVES(call, a, b, ...)                                                  \
    joined(call((__m256)low_half(a), (__m256)low_half(b), ##__VA_ARGS__),          \
           call((__m256)high_half(a), (__m256)high_half(b), ##__VA_ARGS__))
SG_INLINE Lanes more(vf a, vf b) { return (vi)SG_HALVES(_mm256_cmp_ps, a, b, _CMP_GT_OQ); }
SG_INLINE Lanes as_much(vf a, vf b) { return (vi)SG_HALVES(_mm256_cmp_ps, a, b, _CMP_GE_OQ); }
SG_INLINE Lanes equal(vf a, vf b) { return (vi)SG_HALVES(_mm256_cmp_ps, a, b, _CMP_EQ_OQ); }
SG_INLINE __m256 more_whole(__m256 a, __m256 b) { return (__m256)_mm256_cmpgt_epi32((__m256i)a, (__m256i)b); }
SG_INLINE Lanes more(vi a, vi b) { return (vi)SG_HALVES(more_whole, (vf)a, (vf)b); }
SG_INLINE Lanes within(vi x, vi low, vi high) { return (x >= low) & (x < high); }
SG_INLINE uint32_t bits_of(Lanes lanes) {
    const uint32_t low = _mm256_movemask_ps((__m256)low_half((vf)lanes));
    return low | (uint32_t)_mm256_movemask_ps((__m256)high_half((vf)lanes)) << 8;
}
SG_INLINE vf larger(vf a, vf b) { return SG_HALVES(_mm256_max_ps, a, b); }
SG_INLINE vf smaller(vf a, vf b) { return SG_HALVES(_mm256_min_ps, a, b); }
#undef SG_HALVES
#endif

// Of pairs of bfloat16 in 32 bits: the first of each (low half) and the second.
SG_INLINE vf firsts(vu pairs) { return floats(pairs << 16); }
SG_INLINE vf seconds(vu pairs) { return floats(pairs & 0xffff0000u); }

SG_INLINE float single(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

SG_INLINE bf16 rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 0x40);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// Compilers take these conversions apart.
#ifdef __AVX512F__
SG_INLINE vu wide(vh x) { return (vu)_mm512_cvtepu16_epi32((__m256i)x); }
SG_INLINE vf whole(vb x) { return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)x)); }
#else
SG_INLINE vu wide(vh x) { return __builtin_convertvector(x, vu); }
SG_INLINE vf whole(vb x) { return __builtin_convertvector(x, vf); }
#endif

SG_INLINE vf widen(vh x) { return floats(wide(x) << 16); }

// Rounded to nearest, ties to even, in the low half of every lane; NaN stays NaN.
SG_INLINE vu round_bits(vf x) {
    const vu bits = (vu)x;
    const Lanes odd_nan = more((vi)(bits & 0x7fffffffu), (vi)splat_u(0x7f800000u));
    const vu near = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return (vu)pick(odd_nan, (vi)((bits >> 16) | 0x40u), (vi)near);
}

// The instructions make 0 of what is no normal number.
#ifdef __AVX512BF16__
SG_INLINE vh narrow(vf x) { return (vh)_mm512_cvtneps_pbh((__m512)x); }
SG_INLINE vf as_written(vf x) { return widen(narrow(x)); }
SG_INLINE vu rounded_pairs(vf first, vf second) {
    const vw both = (vw)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (vu)__builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25,
                                       10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#else
SG_INLINE vh narrow(vf x) { return __builtin_convertvector(round_bits(x), vh); }
SG_INLINE vf as_written(vf x) { return (vf)(round_bits(x) << 16); }
SG_INLINE vu rounded_pairs(vf first, vf second) { return round_bits(first) | (round_bits(second) << 16); }
#endif

SG_INLINE vf load_floats(const float* p) { return load<vf>(p); }
SG_INLINE vf load_floats(const bf16* p) { return widen(load<vh>(p)); }
SG_INLINE vf load_floats(const int8_t* p) { return whole(load<vb>(p)); }
SG_INLINE void store_floats(float* p, vf x) { store(p, x); }
SG_INLINE void store_floats(bf16* p, vf x) { store(p, narrow(x)); }
SG_INLINE float one(float x) { return x; }
SG_INLINE float one(bf16 x) { return single(x); }
SG_INLINE void put(float* p, float x) { *p = x; }
SG_INLINE void put(bf16* p, float x) { *p = rounded(x); }

typedef float vf4 __attribute__((vector_size(16)));

SG_INLINE float sum(vf x) {
    const vf8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    const vf4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

SG_INLINE float largest(vf x) {
    const vf8 low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    const vf8 high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    const vf8 a = low > high ? low : high;
    const vf4 c = __builtin_shufflevector(a, a, 0, 1, 2, 3), d = __builtin_shufflevector(a, a, 4, 5, 6, 7);
    const vf4 e = c > d ? c : d;
    const float f = e[0] > e[2] ? e[0] : e[2], g = e[1] > e[3] ? e[1] : e[3];
    return f > g ? f : g;
}

// To the nearest whole number, the even one of two; and to the next one toward zero.
#ifdef __AVX512F__
SG_INLINE vf nearest(vf x) { return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
SG_INLINE vf toward_zero(vf x) { return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_ZERO); }
#else
SG_INLINE vf nearest(vf x) {
    constexpr int kWay = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return joined(_mm256_round_ps((__m256)low_half(x), kWay), _mm256_round_ps((__m256)high_half(x), kWay));
}
SG_INLINE vf toward_zero(vf x) {
    constexpr int kWay = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
    return joined(_mm256_round_ps((__m256)low_half(x), kWay), _mm256_round_ps((__m256)high_half(x), kWay));
}
#endif

// Of e^x with x at most ln(2) / 2 either way.
SG_INLINE vf exponential_near_0(vf x) {
    vf y = splat(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    return y * (x * x) + (x + 1.0f);
}

// e^x to about 2 units in the last place; below -87 it is 0, above 88 as at 88, NaN stays NaN.
#ifdef __AVX512F__
SG_INLINE vf exponential(vf x) {
    const __mmask16 over = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-87.0f), _CMP_NLT_UQ);
    const vf bounded = (vf)_mm512_min_ps((__m512)splat(88.0f), (__m512)x);
    const vf whole = nearest(bounded * 1.44269504088896341f);
    const vf rest = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
    return (vf)_mm512_maskz_scalef_ps(over, (__m512)exponential_near_0(rest), (__m512)whole);
}
#else
SG_INLINE vf exponential(vf x) {
    const Lanes under = more(splat(-87.0f), x);
    const vf bounded = pick(more(x, splat(88.0f)), splat(88.0f), pick(under, splat(-87.0f), x));
    const vf shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const vf turned = bounded * 1.44269504088896341f + shift;
    const vf whole = turned - shift;
    const vf rest = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
    const vf power = (vf)(((vi)turned << 23) + (vi)splat(1.0f));
    return pick(under, vf{}, exponential_near_0(rest) * power);
}
#endif

// e^x for x at most 0 as precisely as a number of a type has it: what becomes bfloat16 to 2^-13 of it.
SG_INLINE vf exponential_as(const float*, vf x) { return exponential(x); }
#ifdef __AVX512F__
SG_INLINE vf exponential_as(const bf16*, vf x) {
    // Where 2^power is no normal number it is 0, or NaN: to find others takes a hundred times as long.
    const vf power = x * 1.44269504088896341f, whole = nearest(power), rest = power - whole;
    const __mmask16 normal = _mm512_cmp_ps_mask((__m512)power, (__m512)splat(-125.0f), _CMP_NLT_UQ);
    vf y = splat(5.517166e-2f);
    y = y * rest + 2.4261114e-1f;
    y = y * rest + 6.9326099e-1f;
    y = y * rest + 9.9992807e-1f;
    return (vf)_mm512_maskz_scalef_ps(normal, (__m512)y, (__m512)whole);
}
#else
SG_INLINE vf exponential_as(const bf16*, vf x) { return exponential(x); }
#endif

// acc + the products of pairs of bfloat16: first with first and second with second.
SG_INLINE vf dot_pairs(vf acc, vu a, vu b) {
#ifdef __AVX512BF16__
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    return acc + firsts(a) * firsts(b) + seconds(a) * seconds(b);
#endif
}

// Sums of pairs of numbers of x beside those of y. Of vectors v[0] to v[15], put together two and two with kCount 1,
// then those with 2, 4 and 8, number i of the result is the sum of v[i].
template <int kCount>
SG_INLINE vf halves(vf x, vf y) {
    if constexpr (kCount == 1)
        return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    else if constexpr (kCount == 2)
        return __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    else if constexpr (kCount == 4)
        return __builtin_shufflevector(x, y, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
               __builtin_shufflevector(x, y, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    else
        return __builtin_shufflevector(x, y, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
               __builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Number i of the result is the sum of v[i].
SG_INLINE vf sums(const vf v[kLanes]) {
    vf a[8], b[4];
    for (int i = 0; i < 8; i++) a[i] = halves<1>(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < 4; i++) b[i] = halves<2>(a[2 * i], a[2 * i + 1]);
    return halves<8>(halves<4>(b[0], b[1]), halves<4>(b[2], b[3]));
}

}  // namespace
