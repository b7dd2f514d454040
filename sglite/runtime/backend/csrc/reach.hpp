// The number of a list at which a sum arrives at a target, the largest numbers first and the first of equals.
//
// Two numbers that a sample of the candidates suggests split them in three; the third where the sum arrives is what is
// looked at next, so that after the first round few are left. Sums are of whole numbers: exact, in any order.
#pragma once

#include "vectors.hpp"

namespace {

constexpr float kUnitWeight = 1099511627776.0f;  // 2^40: the largest weight
constexpr int64_t kSumStretch = 65536;           // weights that add up without rounding, sixteen at a time
constexpr int64_t kSampled = 64;                 // candidates of a sample, at most
constexpr int64_t kSorted = 48;                  // candidates that are sorted
constexpr int kGuesses = 12;                     // rounds by sample; those that follow halve the range of numbers

// Sums of weights by lane, as doubles, and weights as they are added.
#ifdef __AVX512F__
struct Sums {
    __m512d part[2];
};
typedef Sums Addends;

SG_INLINE Sums no_sums() { return {{_mm512_setzero_pd(), _mm512_setzero_pd()}}; }
SG_INLINE Addends addends(vf x) {
    return {{_mm512_cvtps_pd((__m256)low_half(x)), _mm512_cvtps_pd((__m256)high_half(x))}};
}
SG_INLINE void add(Sums& s, const Addends& x) {
    s.part[0] += x.part[0];
    s.part[1] += x.part[1];
}
SG_INLINE void add(Sums& s, const Addends& x, Lanes lanes) {
    s.part[0] = _mm512_mask_add_pd(s.part[0], (__mmask8)lanes, s.part[0], x.part[0]);
    s.part[1] = _mm512_mask_add_pd(s.part[1], (__mmask8)(lanes >> 8), s.part[1], x.part[1]);
}
#else
struct Sums {
    __m256d part[4];
};
typedef vf Addends;

SG_INLINE Sums no_sums() {
    return {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}};
}
SG_INLINE Addends addends(vf x) { return x; }
SG_INLINE void add(Sums& s, Addends x) {
    const __m256 low = (__m256)low_half(x), high = (__m256)high_half(x);
    s.part[0] += _mm256_cvtps_pd(_mm256_castps256_ps128(low));
    s.part[1] += _mm256_cvtps_pd(_mm256_extractf128_ps(low, 1));
    s.part[2] += _mm256_cvtps_pd(_mm256_castps256_ps128(high));
    s.part[3] += _mm256_cvtps_pd(_mm256_extractf128_ps(high, 1));
}
SG_INLINE void add(Sums& s, Addends x, Lanes lanes) { add(s, pick(lanes, x, vf{})); }
#endif

SG_INLINE int64_t whole_sum(const Sums& s) {
    double lanes[kLanes];
    memcpy(lanes, s.part, sizeof lanes);
    int64_t sum = 0;
    for (int i = 0; i < kLanes; i++) sum += (int64_t)lanes[i];
    return sum;
}

// Bits of the lanes before number `count`.
SG_INLINE uint32_t lanes_below(int64_t count) { return count >= kLanes ? 0xffffu : count > 0 ? (1u << count) - 1 : 0; }

SG_INLINE vi numbered(int64_t first) {
    return vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int32_t)first;
}

// The lanes whose bits are set, side by side; how many they are. `to` has room for sixteen.
template <class T, class V>
SG_INLINE int64_t pack_lanes(T* to, uint32_t bits, V x) {
    const int64_t count = __builtin_popcount(bits);
#ifdef __AVX512F__
    store(to, (V)_mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)x));
#else
    if (bits == 0xffffu) {
        store(to, x);
    } else {
        T lanes[kLanes];
        store(lanes, x);
        for (; bits; bits &= bits - 1) *to++ = lanes[__builtin_ctz(bits)];
    }
#endif
    return count;
}

// Some numbers of a list in its order, with -inf (and no weight) up to the next sixteen.
struct Candidates {
    float* x;
    float* weights;  // not read where every number counts 1
    int32_t* at;     // places in the list
    int64_t size;
};

struct Reached {
    int64_t at, sum;  // a place in the list, and the sum up to it, its own included
};

// The list itself, or candidates of it.
struct Looked {
    const float* x;
    const float* weights;
    const int32_t* at;  // null: all of the list
    int64_t size;

    int64_t place(int64_t i) const { return at ? at[i] : i; }
};

struct Pivots {
    float low, high;
};

struct Split {
    int64_t above, between;  // sums over `high`, and from `low` up to `high`
};

// The lanes of the numbers from number i on whose bits are set, behind the `size` candidates that there are.
template <bool kWeighed>
SG_INLINE void take(const Looked& c, int64_t i, uint32_t bits, const Candidates& to, int64_t& size) {
    const vf x = load<vf>(c.x + i), weight = kWeighed ? load<vf>(c.weights + i) : vf{};
    const vi places = c.at ? load<vi>(c.at + i) : numbered(i);
    pack_lanes(to.at + size, bits, places);
    if (kWeighed) pack_lanes(to.weights + size, bits, weight);
    size += pack_lanes(to.x + size, bits, x);
}

template <bool kWeighed>
SG_INLINE Looked taken(const Candidates& to, int64_t size) {
    store(to.x + size, splat(-__builtin_inff()));
    if (kWeighed) store(to.weights + size, vf{});
    return {to.x, to.weights, to.at, size};
}

// Sums of the numbers on both sides of the pivots; where `kept` is wanted, it gets those between. Then `to` is not
// where the numbers are.
template <bool kWeighed>
static Split split(const Looked& c, Pivots p, const Candidates& to, Looked* kept) {
    int64_t above = 0, between = 0, size = 0;
    for (int64_t from = 0; from < c.size; from += kSumStretch) {
        Sums over = no_sums(), within = no_sums();
        for (int64_t i = from; i < least(c.size, from + kSumStretch); i += kLanes) {
            const vf x = load<vf>(c.x + i);
            const Lanes high = more(x, splat(p.high)), middle = as_much(x, splat(p.low)) & ~high;
            const Addends weights = addends(kWeighed ? load<vf>(c.weights + i) : splat(1.0f));
            add(over, weights, high);
            add(within, weights, middle);
            const uint32_t bits = kept ? bits_of(middle) & lanes_below(c.size - i) : 0;
            if (bits) take<kWeighed>(c, i, bits, to, size);
        }
        above += whole_sum(over);
        between += whole_sum(within);
    }
    if (kept) *kept = taken<kWeighed>(to, size);
    return {above, between};
}

// The candidates from `low` up to `high`, wherever they are.
template <bool kWeighed>
static Looked keep(const Looked& c, float low, float high, const Candidates& to) {
    int64_t size = 0;
    for (int64_t i = 0; i < c.size; i += kLanes) {
        const vf x = load<vf>(c.x + i);
        const uint32_t bits = bits_of(as_much(x, splat(low)) & as_much(splat(high), x)) & lanes_below(c.size - i);
        if (bits) take<kWeighed>(c, i, bits, to, size);
    }
    return taken<kWeighed>(to, size);
}

// Floats in the order of whole numbers, and back.
SG_INLINE int32_t order_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

SG_INLINE float number_at(int32_t order) {
    const int32_t bits = order ^ (order >> 31 & 0x7fffffff);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// The next float above and below; both zeros are one number.
SG_INLINE float above(float x) { return number_at(order_of(x + 0.0f) + 1); }
SG_INLINE float below(float x) { return -above(-x); }

// Half way between the smallest and the largest candidate, counted in floats.
static Pivots halfway(const Looked& c) {
    int64_t low = order_of(c.x[0]), high = low;
    for (int64_t i = 1; i < c.size; i++) {
        low = least(low, order_of(c.x[i]));
        high = most(high, order_of(c.x[i]));
    }
    const float middle = number_at((int32_t)(low + (high - low) / 2));
    return {middle, middle};
}

// How many of x [size], with -inf up to the next sixteen, come before number i: are larger, or equal and before it.
SG_INLINE int64_t rank_of(const float* x, int64_t size, int64_t i) {
    const vf own = splat(x[i]);
    const int64_t its = i / kLanes * kLanes;
    int64_t rank = 0;
    for (int64_t j = 0; j < its; j += kLanes) rank += __builtin_popcount(bits_of(as_much(load<vf>(x + j), own)));
    for (int64_t j = its; j < size; j += kLanes) rank += __builtin_popcount(bits_of(more(load<vf>(x + j), own)));
    return rank + __builtin_popcount(bits_of(equal(load<vf>(x + its), own)) & ((1u << (i - its)) - 1));
}

// Numbers on both sides of the one at which the sum has `share` of all, or that one alone, as a sample has it.
template <bool kWeighed>
static Pivots guess(const Looked& c, double share, bool alone) {
    const int64_t count = most(kLanes, least(kSampled, c.size / 32 / kLanes * kLanes)), step = c.size / count;
    float found[kSampled], x[kSampled], weights[kSampled];
    double total = 0.0;
    for (int64_t i = 0; i < count; i++) found[i] = c.x[i * step + step / 2];
    for (int64_t i = 0; i < count; i++) {
        const int64_t rank = rank_of(found, count, i);
        x[rank] = found[i];
        weights[rank] = kWeighed ? c.weights[i * step + step / 2] : 1.0f;
        total += weights[rank];
    }
    int64_t place = 0;
    for (double sum = weights[0]; place + 1 < count && sum < share * total; sum += weights[place]) place++;
    const int64_t about = alone ? 0 : count / 12 + 2;
    const float low = place + about < count ? x[place + about] : -__FLT_MAX__;
    return {low < -__FLT_MAX__ ? -__FLT_MAX__ : low, place < about ? __builtin_inff() : x[place - about]};
}

// Among candidates that all are `value`.
template <bool kWeighed>
static Reached reach_equal(const Looked& c, float value, int64_t needed, int64_t before) {
    int64_t weight = 0, left = 0;
    for (int64_t i = 0; i < c.size; i += kLanes) {
        uint32_t bits = bits_of(equal(load<vf>(c.x + i), splat(value))) & lanes_below(c.size - i);
        if (!bits) continue;
        if (!weight) {
            weight = kWeighed ? (int64_t)c.weights[i + __builtin_ctz(bits)] : 1;
            left = (needed + weight - 1) / weight;
            before += left * weight;
        }
        const int64_t found = __builtin_popcount(bits);
        if (found < left) {
            left -= found;
            continue;
        }
        for (; left > 1; left--) bits &= bits - 1;
        return {c.place(i + __builtin_ctz(bits)), before};
    }
    return {0, before};
}

// Among few candidates.
template <bool kWeighed>
static Reached reach_sorted(const Looked& c, int64_t needed, int64_t before) {
    int32_t order[kSorted];
    for (int64_t i = 0; i < c.size; i++) order[rank_of(c.x, c.size, i)] = (int32_t)i;
    int64_t sum = 0;
    for (int64_t i = 0; i < c.size; i++) {
        sum += kWeighed ? (int64_t)c.weights[order[i]] : 1;
        if (sum >= needed) return {c.place(order[i]), before + sum};
    }
    return {0, before + sum};
}

// Of numbers x [size], with weights or 1 each, whose sum is `total`: `target` is from 1 up to that. Numbers of -inf
// have no weight; where all count 1, they are not in the total.
template <bool kWeighed>
static Reached reach(const float* x, const float* weights, int64_t size, int64_t target, int64_t total,
                     const Candidates& room) {
    Looked c{x, weights, nullptr, size};
    int64_t before = 0, inside = total;  // sums over the candidates, and of them
    bool slow = false;
    for (int round = 0; c.size > kSorted; round++) {
        const double share = (double)(target - before) / (double)inside;
        const Pivots p = round < kGuesses ? guess<kWeighed>(c, share, slow) : halfway(c);
        Looked between;
        const Split s = split<kWeighed>(c, p, room, c.at ? nullptr : &between);
        const int64_t size_before = c.size;
        if (before + s.above >= target) {
            inside = s.above;
            c = keep<kWeighed>(c, above(p.high), __builtin_inff(), room);
        } else if (before + s.above + s.between >= target) {
            before += s.above;
            inside = s.between;
            if (p.low == p.high) return reach_equal<kWeighed>(c, p.low, target - before, before);
            c = c.at ? keep<kWeighed>(c, p.low, p.high, room) : between;
        } else {
            before += s.above + s.between;
            inside -= s.above + s.between;
            c = keep<kWeighed>(c, -__builtin_inff(), below(p.low), room);
        }
        slow = c.size > size_before / 4 * 3;
    }
    return reach_sorted<kWeighed>(c, target - before, before);
}

}  // namespace
