// Attention of many queries over the same slots, as products of tiles (Dao et al., https://arxiv.org/abs/2205.14135).
//
// A lane is one token and head of a KV head's group. Queries are packed like a weight, 16 lanes side by side, and so are
// the shares as they are found: keys are taken as they come, values are turned.
//
//     scores [slots][lanes]  = keys [slots][dim]       x  queries packed
//     sums [v_dim][lanes]   += values [v_dim][slots]   x  shares packed
//
// With tiles, keys and values lie in strips, and scores and sums of 16 lanes behind each other.
#pragma once

#include "attention_packing.hpp"

namespace {

constexpr int64_t kSlotsAhead = 8;                    // that are fetched while their stretch is made ready
constexpr int64_t kFetchSome = 8, kFetchLines = 128;  // lines that are fetched with shares of 8 slots; before products

// Floats from a row of scores or sums to the next, and where a lane's first is, of `rows`.
template <class T>
constexpr int64_t kLine = kTiles<T> ? kLanes : sglite::kTileLanes;
template <class T>
SG_INLINE int64_t column(int64_t lane, int64_t rows) {
    return kTiles<T> ? lane * rows : lane;
}

// Where a thread keeps the tiles of one piece.
template <class T>
struct Tiles {
    T *q, *keys, *values, *shares;      // packed; [slots][dim]; [v_dim][slots]; packed
    float *scores, *sums, *added;       // [slots][lanes]; [v_dim][lanes] twice
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
        keys = (T*)part(kSlots<T> * a.dim * sizeof(T));
        values = (T*)part(kSlots<T> * a.v_dim * sizeof(T));
        shares = (T*)part(count * kSlots<T> * sizeof(T));
        scores = (float*)part(count * kSlots<T> * sizeof(float));
        sums = (float*)part(count * a.v_dim * sizeof(float));
        added = (float*)part(count * a.v_dim * sizeof(float));
        most = (float*)part(count * sizeof(float));
        total = (float*)part(count * sizeof(float));
        corrections = (float*)part(count * sizeof(float));
        low = (int32_t*)part(count * sizeof(int32_t));
        high = (int32_t*)part(count * sizeof(int32_t));
        key_scales = (float*)part(kSlots<T> * sizeof(float));
        value_scales = (float*)part(kSlots<T> * sizeof(float));
    }
};

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
    memset(t.sums, 0, (kTiles<T> ? t.lanes : sglite::kTileLanes) * a.v_dim * sizeof(float));
}

// Where a stretch of `number` lies that was made ready: its keys, and its values behind them.
template <class T>
SG_INLINE T* ready_stretch(const sglite::Attention& a, int64_t number) {
    return (T*)a.ready + number * kSlots<T> * (a.dim + a.v_dim);
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

// Keys [count][dim] of a stretch and its values [v_dim][kSlots], the last ones again up to where a line ends. With every
// slot so many lines are fetched of what comes next.
template <class T, class S>
static void take_slots(const sglite::Attention& a, int64_t kv, const int64_t* slots, int64_t count, Fetch& next,
                       int64_t lines, Tiles<T>& t) {
    const auto key = [&](int64_t slot) { return (const S*)a.k + (slot * a.kv_heads + kv) * a.dim; };
    const auto value = [&](int64_t slot) { return (const S*)a.v + (slot * a.kv_heads + kv) * a.v_dim; };
    for (int64_t s = 0; s < count; s++) {
        const S* from = key(slots[s]);
        T* to = t.keys + placed<T>(s, 0, a.dim);
        for (int64_t d = 0; d < a.dim; d += kTurned<T>, to += kTiles<T> ? kStrip * kTurned<T> : kTurned<T>)
            store(to, line_of(from + d, to));
        Fetch::some(next, lines);
        if (a.k_scales) {
            t.key_scales[s] = a.k_scales[slots[s] * a.kv_heads + kv] * a.scale;
            t.value_scales[s] = a.v_scales[slots[s] * a.kv_heads + kv];
        }
    }
    for (int64_t s = 0; s < turned<T>(count); s += kLanes) {
        const S* from[kLanes];
        for (int64_t i = 0; i < kLanes; i++) from[i] = value(slots[least(s + i, count - 1)]);
        turn_values(from, a.v_dim, s, t.values);
    }
}

// Shares of 16 lanes in the slots of one line of them, packed: of two slots each, or of one.
SG_INLINE void store_shares(const vf shares[2], bf16* to) { store(to, rounded_pairs(shares[0], shares[1])); }
SG_INLINE void store_shares(const vf shares[1], float* to) { store(to, shares[0]); }

// Shares of the 16 lanes from `lane` in `count` slots from `first`.
template <class T, bool kScaled>
static void share(const sglite::Attention& a, Tiles<T>& t, int64_t lane, int64_t first, int64_t count, bool all_seen,
                  Fetch& next) {
    constexpr int64_t n = kPacked<T>, kChains = 4, kAtOnce = 2 * kChains;
    float* scores = t.scores + column<T>(lane, kSlots<T>);
    T* to = t.shares + lane * kSlots<T>;
    if (kScaled || !all_seen) {
        const vi low = load<vi>(t.low + lane), high = load<vi>(t.high + lane);
        for (int64_t s = 0; s < count; s++) {
            vf score = load<vf>(scores + s * kLine<T>);
            if (kScaled) score *= splat(t.key_scales[s]);
            const vi at = vi{} + (int32_t)(first + s);
            if (!all_seen) score = pick(within(at, low, high), score, splat(kNothing));
            store(scores + s * kLine<T>, score);
        }
    }
    vf found[kChains] = {splat(kNothing), splat(kNothing), splat(kNothing), splat(kNothing)};
    const int64_t whole = count / kAtOnce * kAtOnce;
    for (int64_t s = 0; s < whole; s += kChains)
        for (int64_t i = 0; i < kChains; i++) found[i] = larger(load<vf>(scores + (s + i) * kLine<T>), found[i]);
    for (int64_t s = whole; s < count; s++) found[0] = larger(load<vf>(scores + s * kLine<T>), found[0]);
    const float scale = kScaled ? 1.0f : a.scale;
    const vf before = load<vf>(t.most + lane);
    const vf top = larger(larger(larger(found[0], found[1]), larger(found[2], found[3])) * scale, before);
    // A lane that has seen nothing yet gets shares of 0, and its sums, which are 0, stay as they are.
    const vf base = pick(equal(top, splat(kNothing)), vf{}, top);
    const vf correction = pick(equal(before, splat(kNothing)), splat(1.0f), exponential(before - base));
    vf totals[kChains] = {};
    const auto one = [&](int64_t s) {
        const vf found = exponential_as((const T*)nullptr, load<vf>(scores + s * kLine<T>) * scale - base);
        totals[s % kChains] += found;
        return kScaled ? found * splat(t.value_scales[s]) : found;
    };
    for (int64_t s = 0; s < whole; s += kAtOnce) {
        Fetch::some(next, kFetchSome);
        for (int64_t i = 0; i < kAtOnce; i += n) {
            vf shares[n];
            for (int64_t j = 0; j < n; j++) shares[j] = one(s + i + j);
            store_shares(shares, to + (s + i) * kLanes);
        }
    }
    // Up to where a tile of shares ends.
    for (int64_t s = whole; s < turned<T>(count); s += n) {
        vf shares[n];
        for (int64_t j = 0; j < n; j++) shares[j] = s + j < count ? one(s + j) : vf{};
        store_shares(shares, to + s * kLanes);
    }
    store(t.most + lane, top);
    store(t.total + lane, load<vf>(t.total + lane) * correction + ((totals[0] + totals[1]) + (totals[2] + totals[3])));
    store(t.corrections + lane, correction);
}

// Sums of 16 lanes times their corrections, which mostly are 1.
template <class T>
SG_INLINE void correct_sums(const Tiles<T>& t, int64_t lane, int64_t size) {
    const vf correction = load<vf>(t.corrections + lane);
    if (bits_of(equal(correction, splat(1.0f))) == 0xffff) return;
    float* sums = t.sums + column<T>(lane, size);
    for (int64_t d = 0; d < size; d++, sums += kLine<T>) store(sums, load<vf>(sums) * correction);
}

// The results of the first `count` of 16 lanes from `lane`.
template <class T>
static void end_lanes(const sglite::Attention& a, const sglite::AttentionPiece& piece, const Tiles<T>& t, int64_t lane,
                      int64_t count) {
    const int64_t group = a.heads / a.kv_heads;
    const float* sums = t.sums + column<T>(lane, a.v_dim);
    float* turned = t.added;  // [lanes][v_dim]
    for (int64_t d = 0; d < a.v_dim; d += kLanes) {
        vu block[kLanes];
        for (int i = 0; i < kLanes; i++) block[i] = load<vu>(sums + (d + i) * kLine<T>);
        transpose(block);
        for (int i = 0; i < kLanes; i++) store(turned + i * a.v_dim + d, block[i]);
    }
    for (int64_t r = 0; r < count; r++) {
        const int64_t token = a.order[piece.token + (lane + r) / group];
        const int64_t head = piece.kv_head * group + (lane + r) % group;
        const float* found = turned + r * a.v_dim;
        if (!is_parted(a, token)) {
            write_head<T>(a, token, head, found, t.total[lane + r]);
            continue;
        }
        float* part = part_of(a, token, piece.part);
        memcpy(part + head * a.v_dim, found, a.v_dim * sizeof(float));
        softmax_of(a, part)[head] = {t.most[lane + r], t.total[lane + r]};
    }
}

template <class T>
static void end_tile(const sglite::Attention& a, const sglite::AttentionPiece& piece, const Tiles<T>& t) {
    const int64_t rows = piece.tokens * (a.heads / a.kv_heads);
    for (int64_t lane = 0; lane < rows; lane += kLanes) end_lanes(a, piece, t, lane, least(kLanes, rows - lane));
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
static void attend_slots(const sglite::Attention& a, Tiles<T>& t, int64_t first, int64_t count, const Seen& seen,
                         Fetch& next) {
    const bool all_seen = first >= seen.all_from && first + count <= seen.all_to;
    const int64_t blocks = t.lanes / kLanes, all = turned<T>(count);
    if constexpr (kTiles<T>) {
        const int64_t tiles = a.dim / kTurned<T>;
        multiply_strips<false>(count, t.keys, t.q, tiles, blocks, tiles, t.scores, kSlots<T>);
    } else {
        panel<T>(count, t.keys, a.dim, t.q, kLanes * a.dim, blocks, a.dim, {t.scores, kLine<T>, nullptr, 0, 0});
    }
    for (int64_t lane = 0; lane < t.lanes; lane += kLanes) {
        share<T, sizeof(S) == 1>(a, t, lane, first, count, all_seen, next);
        correct_sums(t, lane, a.v_dim);
    }
    Fetch::some(next, kFetchLines);
    if constexpr (kTiles<T>) {
        constexpr int64_t tiles = kSlots<T> / kTurned<T>;
        multiply_strips<true>(a.v_dim, t.values, t.shares, tiles, blocks, all / kTurned<T>, t.sums, a.v_dim);
        return;
    }
    panel<T>(a.v_dim, t.values, kSlots<T>, t.shares, kLanes * kSlots<T>, blocks, all, {t.added, kLine<T>, nullptr, 0, 0});
    for (int64_t i = 0; i < a.v_dim * kLine<T>; i += kLine<T>)
        for (int64_t lane = i; lane < i + t.lanes; lane += kLanes)
            store(t.sums + lane, load<vf>(t.sums + lane) + load<vf>(t.added + lane));
}

// One stretch for all tiles of its row's queries.
static void ready_piece(void* job, int64_t piece, int) {
    const sglite::Attention& a = *(const sglite::Attention*)job;
    const sglite::ReadyStretch& stretch = a.stretches[piece];
    const int64_t first = stretch.number * kSlots<bf16>, count = least(kSlots<bf16>, stretch.end - first);
    int64_t slots[kSlots<bf16>];
    for (int64_t i = 0; i < count; i += kLanes) find_slots(a, stretch.row, first + i, stretch.end, slots + i);
    Tiles<bf16> t;
    t.keys = ready_stretch<bf16>(a, piece), t.values = t.keys + kSlots<bf16> * a.dim;
    Fetch own{a, slots, stretch.kv_head, sizeof(bf16), count, kSlotsAhead, 0};
    take_slots<bf16, bf16>(a, stretch.kv_head, slots, count, own, (a.dim + a.v_dim) * (int64_t)sizeof(bf16) / 64, t);
}

constexpr auto ready = kTiles<bf16> ? ready_piece : nullptr;

// Some tokens with the heads of one KV head over stretches that are ready.
template <class T>
static void attend_ready(const sglite::Attention& a, const sglite::AttentionPiece& piece, Tiles<T>& t) {
    const Seen seen = seen_by(t);
    Fetch nothing{a, nullptr, piece.kv_head, sizeof(T), 0, 0, 0};
    for (int64_t s = seen.from / kTurned<T> * kTurned<T>; s < seen.to;) {
        const int64_t inside = s % kSlots<T>, count = least(kSlots<T> - inside, seen.to - s);
        T* stretch = ready_stretch<T>(a, piece.ready + s / kSlots<T>);
        t.keys = stretch + placed<T>(inside, 0, a.dim), t.values = stretch + kSlots<T> * a.dim + placed<T>(0, inside, 0);
        attend_slots<T, T>(a, t, s, count, seen, nothing);
        s += count;
    }
}

// Some tokens with the heads of one KV head. S: what the pool has.
template <class T, class S>
static void attend_tile(const sglite::Attention& a, const sglite::AttentionPiece& piece, char* scratch) {
    Tiles<T> t(a, scratch);
    begin_tile(a, piece, t);
    if constexpr (kTiles<T> && sizeof(S) == sizeof(T)) {
        if (a.ready && piece.ready >= 0) {
            shape_tiles(kStrip);
            attend_ready(a, piece, t);
            tile_release();
            return end_tile(a, piece, t);
        }
    }
    const Seen seen = seen_by(t);
    int64_t slots[2][kSlots<T>], now = 0;
    const auto find = [&](int64_t first, int64_t* to) {
        for (int64_t i = 0; i < kSlots<T> && first + i < seen.to; i += kLanes)
            find_slots(a, piece.row, first + i, seen.to, to + i);
    };
    find(seen.from, slots[0]);
    if constexpr (kTiles<T>) shape_tiles(kStrip);
    for (int64_t s = seen.from; s < seen.to; s += kSlots<T>, now = 1 - now) {
        const int64_t count = least(kSlots<T>, seen.to - s), behind = most(0, least(kSlots<T>, seen.to - s - kSlots<T>));
        find(s + kSlots<T>, slots[1 - now]);
        Fetch next{a, slots[1 - now], piece.kv_head, sizeof(S), behind, 0, 0};
        take_slots<T, S>(a, piece.kv_head, slots[now], count, next, 1, t);
        attend_slots<T, S>(a, t, s, count, seen, next);
        Fetch::some(next, kSlots<T> * (a.dim + a.v_dim));  // what is left
    }
    if constexpr (kTiles<T>) tile_release();
    end_tile(a, piece, t);
}

}  // namespace
