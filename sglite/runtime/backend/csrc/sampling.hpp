// One token of every row by a number of its own: masks, cuts and the draw, with the meaning that cpu_sample.py gives
// them, in whole numbers.
//
// A row is a list of numbers in the order of their tokens, with -inf up to the next sixteen: the logits themselves, or
// what the mask leaves of them, or the most likely k of those. Nothing is sorted: which token the sum of weights, the
// most likely first, arrives at a target with is found by looking at ever fewer candidates (reach.hpp).
#pragma once

#include "greatest.hpp"
#include "reach.hpp"

namespace {

// What a thread has room for: a list, its weights, and candidates among it.
struct SampleRoom {
    float* x;
    int32_t* ids;
    float* weights;
    Candidates candidates;
};

struct List {
    const float* x;
    const int32_t* ids;  // null: number i is token i
    int64_t size;
};

// The largest of `count` numbers, NaN where any is, and the first place that it has.
static void find_largest(const float* x, int64_t count, float& top, int64_t& at) {
    const int64_t whole = count / kLanes * kLanes;
    top = -__builtin_inff();
    at = 0;
    look(x, whole, 0, top, at);
    if (whole == count) return;
    float rest[kLanes];
    store(rest, splat(-__builtin_inff()));
    memcpy(rest, x + whole, (count - whole) * sizeof(float));
    look(rest, kLanes, whole, top, at);
}

// Whether a row's bits leave everything.
static bool all_allowed(const sglite::Sample& s, const uint32_t* words) {
    const int64_t whole = s.width / 32, rest = s.width % 32;
    if (s.words * 32 < s.width) return false;
    uint32_t found = rest ? words[whole] | ~0u << rest : ~0u;
    for (int64_t i = 0; i < whole; i++) found &= words[i];
    return found == ~0u;
}

// Numbers and tokens whose bits are set.
static List listed(const sglite::Sample& s, const float* logits, const uint32_t* words, const SampleRoom& room) {
    int64_t size = 0;
    for (int64_t i = 0; i < least(s.words * 32, s.width); i += kLanes) {
        uint32_t bits = words[i / 32] >> i % 32 & lanes_below(s.width - i);
        if (!bits) {
            i += i % 32 == 0 && !words[i / 32] ? kLanes : 0;
            continue;
        }
        vf x = splat(0.0f);
        if (i + kLanes <= s.width)
            x = load<vf>(logits + i);
        else
            memcpy(&x, logits + i, (s.width - i) * sizeof(float));
        pack_lanes(room.ids + size, bits, numbered(i));
        size += pack_lanes(room.x + size, bits, x);
    }
    store(room.x + size, splat(-__builtin_inff()));
    return {room.x, room.ids, size};
}

// The logits as a list.
static List whole_row(const sglite::Sample& s, const float* logits, const SampleRoom& room) {
    if (s.width % kLanes == 0) return {logits, nullptr, s.width};
    memcpy(room.x, logits, s.width * sizeof(float));
    store(room.x + s.width, splat(-__builtin_inff()));
    return {room.x, nullptr, s.width};
}

// The `k` most likely of a list, the first of equals; all where no more than those are possible.
static List most_likely(const List& t, int64_t k, const SampleRoom& room) {
    int64_t possible = 0;
    for (int64_t i = 0; i < t.size; i += kLanes)
        possible += __builtin_popcount(bits_of(more(load<vf>(t.x + i), splat(-__builtin_inff()))));
    if (k >= possible) return t;
    const int64_t last = reach<false>(t.x, nullptr, t.size, k, possible, room.candidates).at;
    const vf worst = splat(t.x[last]);
    int64_t size = 0;
    for (int64_t i = 0; i < t.size; i += kLanes) {
        const vf x = load<vf>(t.x + i);
        const uint32_t bits = bits_of(more(x, worst)) | (bits_of(equal(x, worst)) & lanes_below(last + 1 - i));
        if (!bits) continue;
        pack_lanes(room.ids + size, bits, t.ids ? load<vi>(t.ids + i) : numbered(i));
        size += pack_lanes(room.x + size, bits, x);
    }
    store(room.x + size, splat(-__builtin_inff()));
    return {room.x, room.ids, size};
}

struct Total {
    int64_t all, kept;  // of all weights, of those that are not below the least
};

// Weights of a list, 0 behind its end: e^-((best - x) / temperature) in units of 2^-40.
static Total weigh(const List& t, float best, float temperature, float least_weight, float* weights) {
    Total total{0, 0};
    for (int64_t from = 0; from < t.size; from += kSumStretch) {
        Sums all = no_sums(), kept = no_sums();
        for (int64_t i = from; i < least(t.size, from + kSumStretch); i += kLanes) {
            const vf distance = (splat(best) - load<vf>(t.x + i)) / splat(temperature);
            const vf weight = toward_zero(exponential(-distance) * splat(kUnitWeight));
            store(weights + i, weight);
            const Addends added = addends(weight);
            add(all, added);
            if (least_weight > 0.0f) add(kept, added, as_much(weight, splat(least_weight)));
        }
        total.all += whole_sum(all);
        total.kept += whole_sum(kept);
    }
    if (!(least_weight > 0.0f)) total.kept = total.all;
    return total;
}

// The first number with which the sum of weights passes `target`, in the list's order; those below the least are none.
static int64_t passing(const float* weights, int64_t size, float least_weight, int64_t target) {
    constexpr int64_t kStretch = 1024;
    int64_t sum = 0;
    for (int64_t from = 0; from < size; from += kStretch) {
        const int64_t end = least(size, from + kStretch);
        Sums part = no_sums();
        for (int64_t i = from; i < end; i += kLanes) {
            const vf weight = load<vf>(weights + i);
            add(part, addends(weight), as_much(weight, splat(least_weight)));
        }
        const int64_t found = whole_sum(part);
        if (sum + found <= target) {
            sum += found;
            continue;
        }
        for (int64_t i = from; i < end; i++) {
            sum += weights[i] >= least_weight ? (int64_t)weights[i] : 0;
            if (sum > target) return i;
        }
    }
    return size - 1;
}

// The least float that is not below min-p's share of the largest weight, rounded up to a whole number.
static float smallest_weight(double min_p) {
    const double wanted = __builtin_ceil(min_p * (double)kUnitWeight);
    float found = (float)wanted;
    if ((double)found < wanted) {
        uint32_t bits;
        memcpy(&bits, &found, sizeof bits);
        bits++;
        memcpy(&found, &bits, sizeof found);
    }
    return found;
}

// Which number of the list is drawn: its place in `t`, which becomes what top-k leaves.
static int64_t draw(const sglite::Sample& s, int64_t row, List& t, float best, const SampleRoom& room) {
    const bool cut = s.top_k[row] > 0, narrowed = s.top_p[row] < 1.0;
    if (cut) t = most_likely(t, s.top_k[row], room);
    const float lowest = smallest_weight(s.min_p[row]);
    const Total total = weigh(t, best, s.temperatures[row], lowest, room.weights);
    int64_t kept = total.all;
    if (narrowed) {
        const int64_t target = (int64_t)__builtin_ceil((double)total.all * s.top_p[row]);
        if (target < kept) kept = reach<true>(t.x, room.weights, t.size, target, total.all, room.candidates).sum;
    }
    kept = least(kept, total.kept);
    const int64_t number = least((int64_t)__builtin_floor(s.uniforms[row] * (double)kept), kept - 1);
    if (!cut && !narrowed) return passing(room.weights, t.size, lowest, number);
    return reach<true>(t.x, room.weights, t.size, number + 1, total.all, room.candidates).at;
}

static void sample_row(const sglite::Sample& s, int64_t row, const SampleRoom& room) {
    const float* logits = s.logits + row * s.stride;
    const uint32_t* words = s.mask ? s.mask + row * s.words : nullptr;
    int64_t at = 0;
    float best = 0.0f;
    find_largest(logits, s.width, best, at);
    s.peaks[row] = best;
    const bool sound = __builtin_isfinite(best), masked = words && !all_allowed(s, words);
    List t{logits, nullptr, s.width};
    if (masked) {
        t = listed(s, logits, words, room);
        find_largest(t.x, t.size, best, at);
    }
    s.left[row] = best;
    if (sound && __builtin_isfinite(best) && s.temperatures[row] > 0.0f) {
        if (!masked) t = whole_row(s, logits, room);
        at = draw(s, row, t, best, room);
    }
    s.ids[row] = !t.ids ? at : t.size ? t.ids[at] : 0;
}

static void sample(void* job, int64_t piece, int thread) {
    const sglite::Sample& s = *(const sglite::Sample*)job;
    const int64_t numbers = s.room_size / 6;
    float* const room = s.room + thread * s.room_size;
    int32_t* const ids = (int32_t*)(room + 4 * numbers);
    const SampleRoom own{room, ids, room + numbers, {room + 2 * numbers, room + 3 * numbers, ids + numbers, 0}};
    const int64_t end = least(s.rows, (piece + 1) * s.row_step);
    for (int64_t row = piece * s.row_step; row < end; row++) sample_row(s, row, own);
}

}  // namespace
