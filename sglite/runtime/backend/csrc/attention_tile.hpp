// Attention of many queries over the same slots, as products of tiles (Dao et al., https://arxiv.org/abs/2205.14135).
//
// A lane is one token and head of a KV head's group. Queries are packed like a weight, so that keys are taken as they
// come and the softmax of 16 lanes is made at a time:
//
//     scores [slots][lanes]  = keys [slots][dim]     x  queries packed
//     sums [lanes][v_dim]   += shares [lanes][slots] x  values packed
#pragma once

#include "attention_pool.hpp"
#include "product.hpp"

namespace {

constexpr int64_t kSlots = kTiles<bf16> ? sglite::kTileSlots : sglite::kTileSlots / 2;  // of a stretch
constexpr int64_t kFetchRows = 32, kFetchLines = 128;  // lines that are fetched between products of so many rows

// Where a thread keeps the tiles of one piece.
template <class T>
struct Tiles {
    T *q, *keys, *values, *shares;  // packed; [slots][dim]; packed; [lanes][slots]
    float *scores, *sums, *added;   // [slots][lanes]; [lanes][v_dim] twice
    float *most, *total, *corrections;  // [lanes]
    int32_t *low, *high;                // [lanes] slots that each sees
    float *key_scales, *value_scales;   // [slots]
    int64_t lanes;                      // a multiple of 16

    Tiles() = default;
    Tiles(const sglite::Attention& a, char* at) {
        const auto part = [&at](int64_t bytes) {
            char* here = at;
            at += (bytes + 63) / 64 * 64;
            return here;
        };
        constexpr int64_t count = sglite::kTileLanes;
        q = (T*)part(count * a.dim * sizeof(T));
        keys = (T*)part(kSlots * a.dim * sizeof(T));
        values = (T*)part(kSlots * a.v_dim * sizeof(T));
        shares = (T*)part(count * kSlots * sizeof(T));
        scores = (float*)part(count * kSlots * sizeof(float));
        sums = (float*)part(count * a.v_dim * sizeof(float));
        added = (float*)part(count * a.v_dim * sizeof(float));
        most = (float*)part(count * sizeof(float));
        total = (float*)part(count * sizeof(float));
        corrections = (float*)part(count * sizeof(float));
        low = (int32_t*)part(count * sizeof(int32_t));
        high = (int32_t*)part(count * sizeof(int32_t));
        key_scales = (float*)part(kSlots * sizeof(float));
        value_scales = (float*)part(kSlots * sizeof(float));
    }
};

// Rows and columns of 16 x 16 numbers of 4 bytes change places: first within 4 x 4 of them, then those.
SG_INLINE void transpose(vu x[kLanes]) {
    vu y[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; i += 2) {
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            const vu a = y[i + j], b = y[i + j + 2];
            x[i + 2 * j] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            x[i + 2 * j + 1] =
                __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const vu a = x[j], b = x[4 + j], c = x[8 + j], d = x[12 + j];
        const vu p = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        const vu q = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        const vu r = __builtin_shufflevector(c, d, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        const vu s = __builtin_shufflevector(c, d, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        y[j] = __builtin_shufflevector(p, r, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        y[8 + j] = __builtin_shufflevector(p, r, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        y[4 + j] = __builtin_shufflevector(q, s, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        y[12 + j] = __builtin_shufflevector(q, s, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) x[i] = y[i];
}

// Queries of 16 lanes, [dim / n][16][n] with n numbers in 4 bytes.
template <class T>
SG_INLINE void pack_queries(const T* const from[kLanes], int64_t dim, T* to) {
    constexpr int64_t n = 4 / sizeof(T);
    for (int64_t d = 0; d < dim; d += kLanes * n) {
        vu block[kLanes];
        for (int i = 0; i < kLanes; i++) block[i] = load<vu>(from[i] + d);
        transpose(block);
        for (int i = 0; i < kLanes; i++) store(to + (d + i * n) * kLanes, block[i]);
    }
}

// Lanes behind the last repeat it.
template <class T>
static void begin_tile(const sglite::Attention& a, const sglite::AttentionPiece& piece, Tiles<T>& t) {
    const int64_t group = a.heads / a.kv_heads, count = piece.tokens * group;
    t.lanes = (count + kLanes - 1) / kLanes * kLanes;
    const T* from[kLanes];
    for (int64_t lane = 0; lane < t.lanes; lane++) {
        const int64_t real = least(lane, count - 1), token = a.order[piece.token + real / group];
        const int64_t head = piece.kv_head * group + real % group;
        const Softmax softmax = begin(a, token, head);
        t.most[lane] = softmax.most;
        t.total[lane] = softmax.total;
        t.low[lane] = (int32_t)most(piece.from, first_seen(a, a.ends[token]));
        t.high[lane] = (int32_t)least(piece.to, a.ends[token]);
        from[lane % kLanes] = (const T*)a.q + token * a.q_token + head * a.q_head;
        if (lane % kLanes == kLanes - 1) pack_queries(from, a.dim, t.q + lane / kLanes * kLanes * a.dim);
    }
    memset(t.sums, 0, t.lanes * a.v_dim * sizeof(float));
}

// 16 numbers of two slots' values, or of one slot's, as they lie in a packed weight.
template <class S>
SG_INLINE void pack_values(const S* a, const S* b, bf16* to) {
    store(to, pairs_of(a, b));
}

template <class S>
SG_INLINE void pack_values(const S* a, const S*, float* to) {
    store(to, load_floats(a));
}

// Where a stretch of `number` lies that was made ready: its keys, and its values behind them.
template <class T>
SG_INLINE T* ready_stretch(const sglite::Attention& a, int64_t number) {
    return (T*)a.ready + number * kSlots * (a.dim + a.v_dim);
}

// What is fetched while a stretch is computed: keys and values of the next, a few lines at a time, since a core waits
// when it has asked for many.
struct Fetch {
    const sglite::Attention& a;
    const int64_t *slots, kv, size, count;
    int64_t slot, offset;

    SG_INLINE void some(Fetch& f, int64_t lines) {
        for (; lines && f.slot < f.count; lines--) {
            const int64_t at = f.slots[f.slot] * f.a.kv_heads + f.kv, k_bytes = f.a.dim * f.size;
            const char* keys = (const char*)f.a.k + at * k_bytes;
            const char* values = (const char*)f.a.v + at * f.a.v_dim * f.size - k_bytes;
            __builtin_prefetch((f.offset < k_bytes ? keys : values) + f.offset, 0, 2);
            f.offset += 64;
            if (f.offset >= k_bytes + f.a.v_dim * f.size) f.slot++, f.offset = 0;
        }
    }
};

// Keys [count][dim] of a stretch and its values [v_dim / 16][kSlots / n][16][n].
template <class T, class S>
static void take_slots(const sglite::Attention& a, int64_t kv, const int64_t* slots, int64_t count, Fetch& next,
                       Tiles<T>& t) {
    constexpr int64_t n = 4 / sizeof(T);
    static const S zeros[kLanes] = {};
    const auto key = [&](int64_t slot) { return (const S*)a.k + (slot * a.kv_heads + kv) * a.dim; };
    const auto value = [&](int64_t slot) { return (const S*)a.v + (slot * a.kv_heads + kv) * a.v_dim; };
    for (int64_t s = 0; s < count; s++) {
        const S* from = key(slots[s]);
        T* to = t.keys + s * a.dim;
        for (int64_t d = 0; d < a.dim; d += kLanes) copy_as(from + d, to + d);
        Fetch::some(next, 1);
        if (a.k_scales) {
            t.key_scales[s] = a.k_scales[slots[s] * a.kv_heads + kv] * a.scale;
            t.value_scales[s] = a.v_scales[slots[s] * a.kv_heads + kv];
        }
    }
    for (int64_t s = 0; s < kSlots; s += n) {
        const S* first = s < count ? value(slots[s]) : nullptr;
        const S* second = s + 1 < count ? value(slots[s + 1]) : nullptr;
        for (int64_t d = 0; d < a.v_dim; d += kLanes)
            pack_values(first ? first + d : zeros, second ? second + d : zeros, t.values + d * kSlots + s * kLanes);
    }
}

#ifdef __AVX512BF16__
SG_INLINE vu rounded_pairs(vf a, vf b) {
    const vw both = (vw)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    return (vu)__builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25,
                                       10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#else
SG_INLINE vu rounded_pairs(vf a, vf b) { return round_bits(a) | (round_bits(b) << 16); }
#endif

// Shares of 16 lanes in 32 slots, or 16 of float32, as rows of lanes; `share(i)` is what a slot gets.
template <class Share>
SG_INLINE void store_shares(const Share& share, bf16* to) {
    vu pairs[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) {
        const vf first = share(2 * i);
        pairs[i] = rounded_pairs(first, share(2 * i + 1));
    }
    transpose(pairs);
    for (int i = 0; i < kLanes; i++) store(to + i * kSlots, pairs[i]);
}

template <class Share>
SG_INLINE void store_shares(const Share& share, float* to) {
    vu rows[kLanes];
    for (int i = 0; i < kLanes; i++) rows[i] = (vu)share(i);
    transpose(rows);
    for (int i = 0; i < kLanes; i++) store(to + i * kSlots, rows[i]);
}

// Shares of 16 lanes from `lane` in `count` slots from `first`. A lane's sums are multiplied with its correction, which
// mostly is 1.
template <class T, bool kScaled>
static void share(const sglite::Attention& a, Tiles<T>& t, int64_t lane, int64_t first, int64_t count, bool all_seen,
                  Fetch& next) {
    float* scores = t.scores + lane;
    const vi low = load<vi>(t.low + lane), high = load<vi>(t.high + lane);
    const float scale = kScaled ? 1.0f : a.scale;
    vf found = splat(kNothing);
    for (int64_t s = 0; s < count; s++) {
        vf score = load<vf>(scores + s * t.lanes);
        if (kScaled) score *= splat(t.key_scales[s]);
        const vi at = vi{} + (int32_t)(first + s);
        if (!all_seen) score = pick((at >= low) & (at < high), score, splat(kNothing));
        if (kScaled || !all_seen) store(scores + s * t.lanes, score);
        found = larger(score, found);
    }
    const vf before = load<vf>(t.most + lane), top = larger(found * scale, before);
    // A lane that has seen nothing yet gets shares of 0.
    const vf base = pick(top == splat(kNothing), vf{}, top), correction = exponential(before - base);
    vf total = load<vf>(t.total + lane) * correction;
    constexpr int64_t kAtOnce = kLanes * (4 / sizeof(T));
    for (int64_t s = 0; s < kSlots; s += kAtOnce) {
        const auto found = [&](int64_t i) {
            const vf one = exponential_as((const T*)nullptr, load<vf>(scores + (s + i) * t.lanes) * scale - base);
            total += one;
            return kScaled ? one * splat(t.value_scales[s + i]) : one;
        };
        Fetch::some(next, kAtOnce);
        T* to = t.shares + lane * kSlots + s;
        if (s + kAtOnce <= count)
            store_shares(found, to);
        else
            store_shares([&](int64_t i) { return s + i < count ? found(i) : vf{}; }, to);
    }
    store(t.most + lane, top);
    store(t.total + lane, total);
    store(t.corrections + lane, correction);
}

template <class T>
SG_INLINE void correct_sums(Tiles<T>& t, int64_t rows, int64_t size) {
    for (int64_t r = 0; r < rows; r++) {
        if (t.corrections[r] == 1.0f) continue;
        const vf correction = splat(t.corrections[r]);
        for (int64_t d = r * size; d < (r + 1) * size; d += kLanes) store(t.sums + d, load<vf>(t.sums + d) * correction);
    }
}

template <class T>
SG_INLINE void add_sums(Tiles<T>& t, int64_t rows, int64_t size) {
    for (int64_t r = 0; r < rows; r++) {
        const vf correction = splat(t.corrections[r]);
        for (int64_t d = r * size; d < (r + 1) * size; d += kLanes)
            store(t.sums + d, load<vf>(t.sums + d) * correction + load<vf>(t.added + d));
    }
}

template <class T>
static void end_tile(const sglite::Attention& a, const sglite::AttentionPiece& piece, const Tiles<T>& t, int64_t rows) {
    const int64_t group = a.heads / a.kv_heads;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t token = a.order[piece.token + r / group], head = piece.kv_head * group + r % group;
        const float* sums = t.sums + r * a.v_dim;
        if (!is_parted(a, token)) {
            write_head<T>(a, token, head, sums, t.total[r]);
            continue;
        }
        float* part = part_of(a, token, piece.part);
        memcpy(part + head * a.v_dim, sums, a.v_dim * sizeof(float));
        softmax_of(a, part)[head] = {t.most[r], t.total[r]};
    }
}

// Slots that some lane sees, from `from` up to `to`, and those that all lanes see.
struct Seen {
    int64_t from, to, all_from, all_to;
};

template <class T>
SG_INLINE Seen seen_by(const Tiles<T>& t) {
    Seen seen{t.low[0], t.high[0], t.low[0], t.high[0]};
    for (int64_t lane = 1; lane < t.lanes; lane++) {
        seen.from = least(seen.from, t.low[lane]), seen.all_from = most(seen.all_from, t.low[lane]);
        seen.to = most(seen.to, t.high[lane]), seen.all_to = least(seen.all_to, t.high[lane]);
    }
    return seen;
}

// What the tokens find in one stretch of `count` slots from `first`.
template <class T, class S>
static void attend_slots(const sglite::Attention& a, Tiles<T>& t, int64_t rows, int64_t first, int64_t count,
                         const Seen& seen, Fetch& next) {
    const bool all_seen = first >= seen.all_from && first + count <= seen.all_to;
    if constexpr (kTiles<T>)
        multiply_tiles<false>(t.keys, a.dim, count, t.q, a.dim, t.lanes, a.dim, t.scores, t.lanes);
    else
        panel<T>(count, t.keys, a.dim, t.q, kLanes * a.dim, t.lanes / kLanes, a.dim, {t.scores, t.lanes, nullptr, 0, 0});
    for (int64_t lane = 0; lane < t.lanes; lane += kLanes)
        share<T, sizeof(S) == 1>(a, t, lane, first, count, all_seen, next);
    if constexpr (kTiles<T>) {
        Fetch::some(next, kSlots * (a.dim + a.v_dim));
        correct_sums(t, rows, a.v_dim);
        multiply_tiles<true>(t.shares, kSlots, rows, t.values, kSlots, a.v_dim, count, t.sums, a.v_dim);
        return;
    }
    for (int64_t r = 0; r < rows; r += kFetchRows) {
        Fetch::some(next, kFetchLines);
        panel<T>(least(kFetchRows, rows - r), t.shares + r * kSlots, kSlots, t.values, kLanes * kSlots,
                 a.v_dim / kLanes, kSlots, {t.added + r * a.v_dim, a.v_dim, nullptr, 0, 0});
    }
    add_sums(t, rows, a.v_dim);
}

// One stretch for all tiles of its row's queries.
static void ready_piece(void* job, int64_t piece, int) {
    const sglite::Attention& a = *(const sglite::Attention*)job;
    const sglite::ReadyStretch& stretch = a.stretches[piece];
    const int64_t first = stretch.number * kSlots, count = least(kSlots, stretch.end - first);
    int64_t slots[kSlots];
    for (int64_t i = 0; i < count; i += kLanes) find_slots(a, stretch.row, first + i, stretch.end, slots + i);
    Tiles<bf16> t;
    t.keys = ready_stretch<bf16>(a, piece), t.values = t.keys + kSlots * a.dim;
    Fetch nothing{a, slots, stretch.kv_head, sizeof(bf16), 0, 0, 0};
    take_slots<bf16, bf16>(a, stretch.kv_head, slots, count, nothing, t);
}

constexpr auto ready = kTiles<bf16> ? ready_piece : nullptr;

// Some tokens with the heads of one KV head over stretches that are ready.
template <class T>
static void attend_ready(const sglite::Attention& a, const sglite::AttentionPiece& piece, Tiles<T>& t, int64_t rows) {
    const Seen seen = seen_by(t);
    Fetch nothing{a, nullptr, piece.kv_head, sizeof(T), 0, 0, 0};
    for (int64_t s = seen.from / kSlots * kSlots; s < seen.to; s += kSlots) {
        t.keys = ready_stretch<T>(a, piece.ready + s / kSlots), t.values = t.keys + kSlots * a.dim;
        attend_slots<T, T>(a, t, rows, s, least(kSlots, seen.to - s), seen, nothing);
    }
}

// Some tokens with the heads of one KV head. S: what the pool has.
template <class T, class S>
static void attend_tile(const sglite::Attention& a, const sglite::AttentionPiece& piece, char* scratch) {
    Tiles<T> t(a, scratch);
    begin_tile(a, piece, t);
    const int64_t rows = piece.tokens * (a.heads / a.kv_heads);
    if constexpr (kTiles<T> && sizeof(S) == sizeof(T)) {
        if (a.ready && piece.ready >= 0) {
            shape_tiles(kStrip);
            attend_ready(a, piece, t, rows);
            tile_release();
            return end_tile(a, piece, t, rows);
        }
    }
    const Seen seen = seen_by(t);
    int64_t slots[2][kSlots], now = 0;
    const auto find = [&](int64_t first, int64_t* to) {
        for (int64_t i = 0; i < kSlots && first + i < seen.to; i += kLanes)
            find_slots(a, piece.row, first + i, seen.to, to + i);
    };
    find(seen.from, slots[0]);
    if constexpr (kTiles<T>) shape_tiles(kStrip);
    for (int64_t s = seen.from; s < seen.to; s += kSlots, now = 1 - now) {
        const int64_t count = least(kSlots, seen.to - s), behind = most(0, least(kSlots, seen.to - s - kSlots));
        find(s + kSlots, slots[1 - now]);
        Fetch next{a, slots[1 - now], piece.kv_head, sizeof(S), behind, 0, 0};
        take_slots<T, S>(a, piece.kv_head, slots[now], count, next, t);
        attend_slots<T, S>(a, t, rows, s, count, seen, next);
        Fetch::some(next, kSlots * (a.dim + a.v_dim));  // what is left
    }
    if constexpr (kTiles<T>) tile_release();
    end_tile(a, piece, t, rows);
}

}  // namespace
