// Attention straight from the pages, with a softmax that is corrected when a larger score comes along (Milakov and
// Gimelshein, https://arxiv.org/abs/1805.02867).
//
// One query at a time where a row has few: all KV heads of a stretch of slots before the next stretch, so that a page
// is read as it lies in memory. Many queries as products of tiles (Dao et al., https://arxiv.org/abs/2205.14135).
#pragma once

#include "product.hpp"

namespace {

constexpr float kNothing = -__builtin_inff();

// The pool rows of up to 16 slots from `first`; behind `end` the last is repeated.
SG_INLINE void find_slots(const sglite::Attention& a, int64_t row, int64_t first, int64_t end, int64_t found[kLanes]) {
    const int32_t* table = a.tables + a.table_from[row];
    for (int i = 0; i < kLanes; i++) {
        const int64_t slot = least(first + i, end - 1);
        found[i] = (int64_t)table[slot / a.page_size] * a.page_size + slot % a.page_size;
    }
}

SG_INLINE vi lanes() { return vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// Some numbers of a row of the pool, and how they meet a query and a share.
template <class T>
struct Line;

template <>
struct Line<bf16> {
    static constexpr int kNumbers = 32, kVectors = 2;
    SG_INLINE vf dot(vf acc, const bf16* a, const bf16* b) { return dot_pairs(acc, load<vu>(a), load<vu>(b)); }
    SG_INLINE void read(const bf16* from, vf to[kVectors]) {
        const vu pairs = load<vu>(from);
        to[0] = firsts(pairs);
        to[1] = seconds(pairs);
    }
    SG_INLINE void write(bf16* to, vf a, vf b) { store(to, round_bits(a) | (round_bits(b) << 16)); }
};

template <>
struct Line<float> {
    static constexpr int kNumbers = 16, kVectors = 1;
    SG_INLINE vf dot(vf acc, const float* a, const float* b) { return acc + load<vf>(a) * load<vf>(b); }
    SG_INLINE void read(const float* from, vf to[kVectors]) { to[0] = load<vf>(from); }
    SG_INLINE void write(float* to, vf a, vf) { store(to, a); }
};

// The softmax of one query and head so far.
struct Softmax {
    float most, total;
};

SG_INLINE Softmax begin(const sglite::Attention& a, int64_t head) {
    return a.sinks ? Softmax{a.sinks[head], 1.0f} : Softmax{kNothing, 0.0f};
}

constexpr int64_t kStretch = 64;               // slots that one query looks at before it corrects its sums
constexpr int64_t kLongest = kStretch + kLanes;  // of the last stretch: a few slots alone are not worth a round

// Where the slots of a stretch lie in the pool, in numbers from the first head of slot 0; a multiple of 16 of them.
struct Stretch {
    int64_t keys[kLongest], values[kLongest];
    int64_t count, vectors;  // slots that count, and groups of 16 that hold them

    SG_INLINE void find(Stretch& s, const sglite::Attention& a, int64_t row, int64_t first, int64_t end) {
        s.count = end - first > kLongest ? kStretch : end - first;
        s.vectors = (s.count + kLanes - 1) / kLanes;
        for (int64_t i = 0; i < s.vectors * kLanes; i += kLanes) {
            int64_t slots[kLanes];
            find_slots(a, row, first + i, end, slots);
            for (int64_t j = 0; j < kLanes; j++) {
                s.keys[i + j] = slots[j] * a.kv_heads * a.dim;
                s.values[i + j] = slots[j] * a.kv_heads * a.v_dim;
            }
        }
    }
};

// What is fetched while a head is computed over a stretch, a little for every slot: a share of the next stretch, in the
// order in which it lies in memory.
template <class T>
struct Ahead {
    const T *keys[kLongest], *values[kLongest];

    SG_INLINE void find(Ahead& ahead, const sglite::Attention& a, const sglite::AttentionPiece& piece,
                        const Stretch& next, int64_t kv) {
        for (int64_t i = 0; i < kLongest; i++) {
            const int64_t at = kv * kStretch + i, slot = least(at / piece.kv_heads, next.count - 1);
            const int64_t head = piece.kv_head + at % piece.kv_heads;
            ahead.keys[i] = (const T*)a.k + next.keys[slot] + head * a.dim;
            ahead.values[i] = (const T*)a.v + next.values[slot] + head * a.v_dim;
        }
    }
};

// Scores of 16 slots for G heads of a group; a line of keys is loaded once for all of them.
template <class T, int G>
SG_INLINE void score_slots(vf scores[G], const T* q, int64_t q_head, const T* keys, const int64_t* at,
                           const T* const* ahead, int64_t dim) {
    vf parts[G][kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) {
        const T* key = keys + at[i];
        vf acc[G];
        for (int g = 0; g < G; g++) acc[g] = vf{};
        for (int64_t d = 0; d < dim; d += Line<T>::kNumbers) {
            __builtin_prefetch(ahead[i] + d, 0, 2);
            for (int g = 0; g < G; g++) acc[g] = Line<T>::dot(acc[g], key + d, q + g * q_head + d);
        }
        for (int g = 0; g < G; g++) parts[g][i] = acc[g];
    }
    for (int g = 0; g < G; g++) scores[g] = sums(parts[g]);
}

// to += shares of a stretch times its values, for G heads of a group, after correction.
template <class T, int G>
SG_INLINE void add_values(float* to, int64_t size, const T* values, const Stretch& s, const T* const* ahead,
                          const float (*shares)[kLongest], const float* corrections) {
    constexpr int kVectors = Line<T>::kVectors;
    for (int64_t d = 0; d < size; d += Line<T>::kNumbers) {
        vf acc[G][kVectors];
#pragma GCC unroll 4
        for (int g = 0; g < G; g++)
            for (int j = 0; j < kVectors; j++) acc[g][j] = load<vf>(to + g * size + d + j * kLanes) * corrections[g];
        for (int64_t i = 0; i < s.count; i++) {
            vf line[kVectors];
            __builtin_prefetch(ahead[i] + d, 0, 2);
            Line<T>::read(values + s.values[i] + d, line);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++)
                for (int j = 0; j < kVectors; j++) acc[g][j] += shares[g][i] * line[j];
        }
#pragma GCC unroll 4
        for (int g = 0; g < G; g++)
            for (int j = 0; j < kVectors; j++) store(to + g * size + d + j * kLanes, acc[g][j]);
    }
}

// G heads of a KV head's group over a stretch: `to` their sums [G][v_dim].
template <class T, int G>
static __attribute__((noinline)) void attend_stretch(const sglite::Attention& a, const Stretch& s,
                                                     const Ahead<T>& ahead, const T* q, const T* keys, const T* values, Softmax* softmax, float* to) {
    alignas(64) float shares[G][kLongest];
    float corrections[G];
    vf top[G];
    for (int g = 0; g < G; g++) top[g] = splat(kNothing);
    for (int64_t i = 0; i < s.vectors; i++) {
        const vi seen = lanes() < (int32_t)(s.count - i * kLanes);
        vf scores[G];
        if (a.dim == 128)
            score_slots<T, G>(scores, q, a.q_head, keys, s.keys + i * kLanes, ahead.keys + i * kLanes, 128);
        else if (a.dim == 64)
            score_slots<T, G>(scores, q, a.q_head, keys, s.keys + i * kLanes, ahead.keys + i * kLanes, 64);
        else
            score_slots<T, G>(scores, q, a.q_head, keys, s.keys + i * kLanes, ahead.keys + i * kLanes, a.dim);
        for (int g = 0; g < G; g++) {
            const vf seen_scores = pick(seen, scores[g] * a.scale, splat(kNothing));
            top[g] = larger(seen_scores, top[g]);
            store(shares[g] + i * kLanes, seen_scores);
        }
    }
    for (int g = 0; g < G; g++) {
        const float found = largest(top[g]), most = found > softmax[g].most ? found : softmax[g].most;
        corrections[g] = most == softmax[g].most ? 1.0f : exponential(splat(softmax[g].most - most))[0];
        vf total = vf{};
        for (int64_t i = 0; i < s.vectors; i++) {
            const vf shared = exponential(load<vf>(shares[g] + i * kLanes) - splat(most));
            total += shared;
            store(shares[g] + i * kLanes, shared);
        }
        softmax[g] = {most, softmax[g].total * corrections[g] + sum(total)};
    }
    add_values<T, G>(to, a.v_dim, values, s, ahead.values, shares, corrections);
}

// The first slot that a query sees.
SG_INLINE int64_t first_seen(const sglite::Attention& a, int64_t end) { return a.window ? most(0, end - a.window) : 0; }

// One query with the heads of several KV heads. `after`: what this thread probably does next, or null.
template <class T>
static void attend_query(const sglite::Attention& a, const sglite::AttentionPiece& piece, int64_t query,
                         const sglite::AttentionPiece* after) {
    const int64_t group = a.heads / a.kv_heads, token = a.query_from[piece.row] + query;
    const int64_t end = a.starts[piece.row] + query + 1;
    const int64_t first_head = piece.kv_head * group, heads = piece.kv_heads * group;
    alignas(64) float sums[sglite::kStateFloats];
    Softmax softmax[sglite::kStateFloats / kLanes];
    memset(sums, 0, heads * a.v_dim * sizeof(float));
    for (int64_t h = 0; h < heads; h++) softmax[h] = begin(a, first_head + h);
    Stretch now, next;
    Ahead<T> ahead;
    const int64_t from = first_seen(a, end);
    Stretch::find(next, a, piece.row, from, end);
    for (int64_t s = from; s < end; s += now.count) {
        now = next;
        const sglite::AttentionPiece* following = s + now.count < end ? &piece : after;
        if (following == &piece) {
            Stretch::find(next, a, piece.row, s + now.count, end);
        } else if (after) {
            const int64_t other_end = a.starts[after->row] + after->query + 1;
            Stretch::find(next, a, after->row, first_seen(a, other_end), other_end);
        }
        for (int64_t kv = 0; kv < piece.kv_heads; kv++) {
            const T* keys = (const T*)a.k + (piece.kv_head + kv) * a.dim;
            const T* values = (const T*)a.v + (piece.kv_head + kv) * a.v_dim;
            Ahead<T>::find(ahead, a, following ? *following : piece, next, kv);
            for (int64_t g = 0; g < group;) {
                const int64_t h = kv * group + g;
                const T* q = (const T*)a.q + token * a.q_token + (first_head + h) * a.q_head;
                if (group - g >= 4) {
                    attend_stretch<T, 4>(a, now, ahead, q, keys, values, softmax + h, sums + h * a.v_dim);
                    g += 4;
                } else if (group - g >= 2) {
                    attend_stretch<T, 2>(a, now, ahead, q, keys, values, softmax + h, sums + h * a.v_dim);
                    g += 2;
                } else {
                    attend_stretch<T, 1>(a, now, ahead, q, keys, values, softmax + h, sums + h * a.v_dim);
                    g += 1;
                }
            }
        }
    }
    for (int64_t h = 0; h < heads; h++) {
        T* out = (T*)a.out + (token * a.heads + first_head + h) * a.v_dim;
        const float* sum_of = sums + h * a.v_dim;
        for (int64_t d = 0; d < a.v_dim; d += Line<T>::kNumbers)
            Line<T>::write(out + d, load<vf>(sum_of + d) / softmax[h].total,
                           load<vf>(sum_of + d + (Line<T>::kVectors - 1) * kLanes) / softmax[h].total);
    }
}

// Where a thread keeps the tiles of one piece.
template <class T>
struct Tiles {
    T *q, *keys, *values, *shares;  // [rows][dim], packed like weights, packed, [rows][kTileSlots]
    float *scores, *sums, *added;   // [rows][kTileSlots], [rows][v_dim] twice
    Softmax* softmax;
    float* corrections;

    Tiles(const sglite::Attention& a, char* at) {
        const auto part = [&at](int64_t bytes) {
            char* here = at;
            at += (bytes + 63) / 64 * 64;
            return here;
        };
        constexpr int64_t rows = sglite::kTileRows, slots = sglite::kTileSlots;
        q = (T*)part(rows * a.dim * sizeof(T));
        keys = (T*)part(slots * a.dim * sizeof(T));
        values = (T*)part(slots * a.v_dim * sizeof(T));
        shares = (T*)part(rows * slots * sizeof(T));
        scores = (float*)part(rows * slots * sizeof(float));
        sums = (float*)part(rows * a.v_dim * sizeof(float));
        added = (float*)part(rows * a.v_dim * sizeof(float));
        softmax = (Softmax*)part(rows * sizeof(Softmax));
        corrections = (float*)part(rows * sizeof(float));
    }
};

// [kTileSlots / 16][dim / 2][16][2]: slots as outputs of a product whose inputs are the dimensions.
static void pack_keys(const bf16* keys, int64_t stride, const int64_t* slots, int64_t count, int64_t dim, bf16* to) {
    for (int64_t s = 0; s < sglite::kTileSlots; s++) {
        uint32_t* out = (uint32_t*)to + s / kLanes * kLanes * (dim / 2) + s % kLanes;
        const bf16* key = keys + slots[s] * stride;
        for (int64_t p = 0; p < dim / 2; p++) {
            uint32_t pair = 0;
            if (s < count) memcpy(&pair, key + 2 * p, 4);
            out[p * kLanes] = pair;
        }
    }
}

static void pack_keys(const float* keys, int64_t stride, const int64_t* slots, int64_t count, int64_t dim, float* to) {
    for (int64_t s = 0; s < sglite::kTileSlots; s++) {
        float* out = to + s / kLanes * kLanes * dim + s % kLanes;
        for (int64_t d = 0; d < dim; d++) out[d * kLanes] = s < count ? keys[slots[s] * stride + d] : 0.0f;
    }
}

// [dim / 16][kTileSlots / 2][16][2]: dimensions as outputs, slots as inputs.
static void pack_values(const bf16* values, int64_t stride, const int64_t* slots, int64_t count, int64_t dim,
                        bf16* to) {
    for (int64_t s = 0; s < sglite::kTileSlots; s += 2)
        for (int64_t d = 0; d < dim; d += kLanes) {
            const vu a = s < count ? __builtin_convertvector(load<vh>(values + slots[s] * stride + d), vu) : vu{};
            const vu b = s + 1 < count ? __builtin_convertvector(load<vh>(values + slots[s + 1] * stride + d), vu) : vu{};
            store(to + d * sglite::kTileSlots + s * kLanes, a | (b << 16));
        }
}

static void pack_values(const float* values, int64_t stride, const int64_t* slots, int64_t count, int64_t dim,
                        float* to) {
    for (int64_t s = 0; s < sglite::kTileSlots; s++)
        for (int64_t d = 0; d < dim; d += kLanes)
            store(to + d * sglite::kTileSlots + s * kLanes,
                  s < count ? load<vf>(values + slots[s] * stride + d) : vf{});
}

// Shares of a row of a tile, whose query sees slots `low` up to `high` of the sequence; the tile's first is `first`.
template <class T>
SG_INLINE void share(const sglite::Attention& a, Tiles<T>& t, int64_t row, int64_t first, int64_t low, int64_t high) {
    constexpr int64_t kVectors = sglite::kTileSlots / kLanes;
    const float* scores = t.scores + row * sglite::kTileSlots;
    T* shares = t.shares + row * sglite::kTileSlots;
    Softmax& softmax = t.softmax[row];
    vf masked[kVectors], top = splat(kNothing);
    for (int64_t i = 0; i < kVectors; i++) {
        const vi at = lanes() + (int32_t)(i * kLanes);
        const vi seen = (at >= (int32_t)most(-1, low - first)) & (at < (int32_t)least(sglite::kTileSlots, high - first));
        masked[i] = pick(seen, load<vf>(scores + i * kLanes) * a.scale, splat(kNothing));
        top = larger(masked[i], top);
    }
    const float found = largest(top), most_now = found > softmax.most ? found : softmax.most;
    if (most_now == kNothing) {  // it has seen nothing yet: slots before its window
        t.corrections[row] = 1.0f;
        for (int64_t i = 0; i < kVectors; i++) store_floats(shares + i * kLanes, vf{});
        return;
    }
    t.corrections[row] = exponential(splat(softmax.most - most_now))[0];
    vf total = vf{};
    for (int64_t i = 0; i < kVectors; i++) {
        const vf shared = exponential(masked[i] - splat(most_now));
        total += shared;
        store_floats(shares + i * kLanes, shared);
    }
    softmax.total = softmax.total * t.corrections[row] + sum(total);
    softmax.most = most_now;
}

// Many queries with the heads of one KV head.
template <class T>
static void attend_tile(const sglite::Attention& a, const sglite::AttentionPiece& piece, char* scratch) {
    const int64_t group = a.heads / a.kv_heads, rows = piece.queries * group;
    const int64_t token = a.query_from[piece.row] + piece.query, first_head = piece.kv_head * group;
    const int64_t k_stride = a.kv_heads * a.dim, v_stride = a.kv_heads * a.v_dim;
    const int64_t seen_first = a.starts[piece.row] + piece.query + 1;  // slots before the first query's end
    const int64_t end = seen_first + piece.queries - 1;
    Tiles<T> t(a, scratch);
    memset(t.sums, 0, rows * a.v_dim * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        const T* q = (const T*)a.q + (token + r / group) * a.q_token + (first_head + r % group) * a.q_head;
        memcpy(t.q + r * a.dim, q, a.dim * sizeof(T));
        t.softmax[r] = begin(a, first_head + r % group);
    }
    for (int64_t s = a.window ? most(0, seen_first - a.window) : 0; s < end; s += sglite::kTileSlots) {
        int64_t slots[sglite::kTileSlots];
        for (int64_t i = 0; i < sglite::kTileSlots; i += kLanes) find_slots(a, piece.row, s + i, end, slots + i);
        const int64_t count = least(sglite::kTileSlots, end - s);
        pack_keys((const T*)a.k + piece.kv_head * a.dim, k_stride, slots, count, a.dim, t.keys);
        pack_values((const T*)a.v + piece.kv_head * a.v_dim, v_stride, slots, count, a.v_dim, t.values);
        panel<T>(rows, t.q, a.dim, t.keys, kLanes * a.dim, sglite::kTileSlots / kLanes, a.dim,
                 {t.scores, sglite::kTileSlots, nullptr, 0, 0});
        for (int64_t r = 0; r < rows; r++) {
            const int64_t high = seen_first + r / group;
            share<T>(a, t, r, s, a.window ? high - a.window : 0, high);
        }
        panel<T>(rows, t.shares, sglite::kTileSlots, t.values, kLanes * sglite::kTileSlots, a.v_dim / kLanes,
                 sglite::kTileSlots, {t.added, a.v_dim, nullptr, 0, 0});
        for (int64_t r = 0; r < rows; r++)
            for (int64_t d = 0; d < a.v_dim; d += kLanes) {
                float* to = t.sums + r * a.v_dim + d;
                store(to, load<vf>(to) * t.corrections[r] + load<vf>(t.added + r * a.v_dim + d));
            }
    }
    for (int64_t r = 0; r < rows; r++) {
        T* out = (T*)a.out + ((token + r / group) * a.heads + first_head + r % group) * a.v_dim;
        for (int64_t d = 0; d < a.v_dim; d += kLanes)
            store_floats(out + d, load<vf>(t.sums + r * a.v_dim + d) / t.softmax[r].total);
    }
}

template <class T>
static void attention_piece(const sglite::Attention& a, int64_t number, int thread) {
    const sglite::AttentionPiece& piece = a.pieces[number];
    if (a.query_from[piece.row + 1] - a.query_from[piece.row] > sglite::kFewQueries) {
        attend_tile<T>(a, piece, a.scratch + thread * a.scratch_size);
        return;
    }
    const sglite::AttentionPiece* after = number + a.threads < a.num_pieces ? &a.pieces[number + a.threads] : nullptr;
    for (int64_t i = 0; i < piece.queries; i++) attend_query<T>(a, piece, piece.query + i, after);
}

static void attention(void* job, int64_t piece, int thread) {
    const sglite::Attention& a = *(const sglite::Attention*)job;
    if (a.type)
        attention_piece<bf16>(a, piece, thread);
    else
        attention_piece<float>(a, piece, thread);
}

}  // namespace
