// Attention of single queries, with a softmax that is corrected when a larger score comes along (Milakov and
// Gimelshein, https://arxiv.org/abs/1805.02867): all KV heads of a stretch of slots before the next stretch, so that a
// page is read as it lies in memory.
#pragma once

#include "attention_pool.hpp"

namespace {

constexpr int64_t kStretch = 64;                // slots that one query looks at before it corrects its sums
constexpr int64_t kLongest = kStretch + kLanes;  // of the last stretch: a few slots alone are not worth a round

// Where the slots of a stretch lie in the pool, in numbers from the first head of slot 0; a multiple of 16 of them.
struct Stretch {
    int64_t heads[kLongest], keys[kLongest], values[kLongest];
    int64_t count, vectors;  // slots that count, and groups of 16 that hold them

    SG_INLINE void find(Stretch& s, const sglite::Attention& a, int64_t row, int64_t first, int64_t end) {
        s.count = end - first > kLongest ? kStretch : end - first;
        s.vectors = (s.count + kLanes - 1) / kLanes;
        for (int64_t i = 0; i < s.vectors * kLanes; i += kLanes) {
            int64_t slots[kLanes];
            find_slots(a, row, first + i, end, slots);
            for (int64_t j = 0; j < kLanes; j++) {
                s.heads[i + j] = slots[j] * a.kv_heads;
                s.keys[i + j] = s.heads[i + j] * a.dim;
                s.values[i + j] = s.heads[i + j] * a.v_dim;
            }
        }
    }
};

// What is fetched while a head is computed over a stretch, a little for every slot: a share of the next stretch, in the
// order in which it lies in memory.
template <class S>
struct Ahead {
    const S *keys[kLongest], *values[kLongest];

    SG_INLINE void find(Ahead& ahead, const sglite::Attention& a, const sglite::AttentionPiece& piece,
                        const Stretch& next, int64_t kv) {
        for (int64_t i = 0; i < kLongest; i++) {
            const int64_t at = kv * kStretch + i, slot = least(at / piece.kv_heads, next.count - 1);
            const int64_t head = piece.kv_head + at % piece.kv_heads;
            ahead.keys[i] = (const S*)a.k + next.keys[slot] + head * a.dim;
            ahead.values[i] = (const S*)a.v + next.values[slot] + head * a.v_dim;
        }
    }
};

template <class S>
SG_INLINE void fetch(const S* from, int64_t count) {
    for (int64_t i = 0; i < count * (int64_t)sizeof(S); i += 64) __builtin_prefetch((const char*)from + i, 0, 2);
}

// Vectors of numbers of the pool, and how they meet a query.
template <class S>
struct Line;

template <>
struct Line<bf16> {
    typedef bf16 Query;
    typedef vu Key;
    static constexpr int kNumbers = 32;
    SG_INLINE vf dot(vf acc, Key key, const bf16* q) { return dot_pairs(acc, load<vu>(q), key); }
};

template <>
struct Line<float> {
    typedef float Query;
    typedef vf Key;
    static constexpr int kNumbers = 16;
    SG_INLINE vf dot(vf acc, Key key, const float* q) { return acc + load<vf>(q) * key; }
};

template <>
struct Line<int8_t> {
    typedef float Query;
    typedef vf Key;
    static constexpr int kNumbers = 16;
    SG_INLINE vf dot(vf acc, Key key, const float* q) { return acc + load<vf>(q) * key; }
};

SG_INLINE void read_key(const bf16* from, vu& to) { to = load<vu>(from); }
SG_INLINE void read_key(const float* from, vf& to) { to = load<vf>(from); }
SG_INLINE void read_key(const int8_t* from, vf& to) { to = load_floats(from); }

// Sums of a key's products with G queries.
template <class S, int G, int kDim>
SG_INLINE void score_slot(vf scores[G], const typename Line<S>::Query* q, int64_t q_head, const S* key, const S* ahead,
                          int64_t dim) {
    fetch(ahead, kDim ? kDim : dim);
    for (int g = 0; g < G; g++) scores[g] = vf{};
#pragma GCC unroll 4
    for (int64_t d = 0; d < (kDim ? kDim : dim); d += Line<S>::kNumbers) {
        typename Line<S>::Key line;
        read_key(key + d, line);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) scores[g] = Line<S>::dot(scores[g], line, q + g * q_head + d);
    }
}

// Scores of 16 slots for G heads of a group; a line of keys is loaded once for all of them.
template <class S, int G, int kDim>
SG_INLINE void score_slots(vf scores[G], const typename Line<S>::Query* q, int64_t q_head, const S* keys,
                           const int64_t* at, const S* const* ahead, int64_t dim) {
    vf quarters[4][G];
#pragma GCC unroll 1
    for (int i = 0; i < 4; i++) {
        vf four[4][G];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            score_slot<S, G, kDim>(four[j], q, q_head, keys + at[4 * i + j], ahead[4 * i + j], dim);
        for (int g = 0; g < G; g++)
            quarters[i][g] = halves<2>(halves<1>(four[0][g], four[1][g]), halves<1>(four[2][g], four[3][g]));
    }
    for (int g = 0; g < G; g++)
        scores[g] = halves<8>(halves<4>(quarters[0][g], quarters[1][g]), halves<4>(quarters[2][g], quarters[3][g]));
}

// Shares of a stretch for one head, and how values are multiplied with those of G heads: V vectors at a time.
template <class S>
struct Shares {
    alignas(64) float numbers[kLongest];

    SG_INLINE void put(Shares& to, int64_t i, vf shares) { store(to.numbers + i, shares); }

    template <int G, int V>
    SG_INLINE void add(vf acc[G][V], const Shares* shares, const S* values, const Stretch& s, const S* const* ahead,
                       int64_t d) {
        for (int64_t i = 0; i < s.count; i++) {
            fetch(ahead[i] + d, V * kLanes);
            const S* value = values + s.values[i] + d;
            vf line[V];
#pragma GCC unroll 8
            for (int j = 0; j < V; j++) line[j] = load_floats(value + j * kLanes);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) {
                const vf share = splat(shares[g].numbers[i]);
#pragma GCC unroll 8
                for (int j = 0; j < V; j++) acc[g][j] += share * line[j];
            }
        }
    }

    // Sums in the order of the dimensions.
    SG_INLINE void settle(float*, int64_t) {}
};

#ifdef __AVX512BF16__
// Two slots at a time, as pairs: of every 8 dimensions 0 to 3 in one vector and 4 to 7 in the next until they settle.
template <>
struct Shares<bf16> {
    alignas(64) bf16 numbers[kLongest];

    SG_INLINE void put(Shares& to, int64_t i, vf shares) { store(to.numbers + i, narrow(shares)); }

    template <int G, int V>
    SG_INLINE void add(vf acc[G][V], const Shares* shares, const bf16* values, const Stretch& s,
                       const bf16* const* ahead, int64_t d) {
        for (int64_t i = 0; i < s.count; i += 2) {  // behind the last slot it is repeated, with a share of 0
            fetch(ahead[i] + d, V * kLanes);
            fetch(ahead[i + 1] + d, V * kLanes);
            const bf16 *one = values + s.values[i] + d, *two = values + s.values[i + 1] + d;
            vu line[V];
#pragma GCC unroll 4
            for (int j = 0; j < V; j += 2) {
                const vw a = load<vw>(one + j * kLanes), b = load<vw>(two + j * kLanes);
                line[j] = (vu)__builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 8, 40, 9, 41, 10, 42, 11, 43,
                                                      16, 48, 17, 49, 18, 50, 19, 51, 24, 56, 25, 57, 26, 58, 27, 59);
                line[j + 1] =
                    (vu)__builtin_shufflevector(a, b, 4, 36, 5, 37, 6, 38, 7, 39, 12, 44, 13, 45, 14, 46, 15, 47, 20,
                                                52, 21, 53, 22, 54, 23, 55, 28, 60, 29, 61, 30, 62, 31, 63);
            }
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) {
                uint32_t pair;
                memcpy(&pair, shares[g].numbers + i, 4);
                const vu share = splat_u(pair);
#pragma GCC unroll 8
                for (int j = 0; j < V; j++) acc[g][j] = dot_pairs(acc[g][j], share, line[j]);
            }
        }
    }

    SG_INLINE void settle(float* sums, int64_t count) {
        for (int64_t i = 0; i < count; i += 2 * kLanes) {
            const vf a = load<vf>(sums + i), b = load<vf>(sums + i + kLanes);
            store(sums + i, __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
            store(sums + i + kLanes,
                  __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
        }
    }
};
#endif

// `to` += shares of a stretch times its values, for G heads of a group, after correction; V vectors at a time.
template <class S, int G, int V>
SG_INLINE void add_values(float* to, int64_t size, const S* values, const Stretch& s, const S* const* ahead,
                          const Shares<S>* shares, const float* corrections) {
    for (int64_t d = 0; d < size; d += V * kLanes) {
        vf acc[G][V];
#pragma GCC unroll 4
        for (int g = 0; g < G; g++)
#pragma GCC unroll 8
            for (int j = 0; j < V; j++) acc[g][j] = load<vf>(to + g * size + d + j * kLanes) * corrections[g];
        Shares<S>::template add<G, V>(acc, shares, values, s, ahead, d);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++)
#pragma GCC unroll 8
            for (int j = 0; j < V; j++) store(to + g * size + d + j * kLanes, acc[g][j]);
    }
}

// Numbers of the pool that 16 slots of a KV head are multiplied with; 1 where it is not quantised.
SG_INLINE vf scales_of(const float* scales, const int64_t* heads, int64_t kv) {
    vf found = splat(1.0f);
    if (scales)
        for (int j = 0; j < kLanes; j++) found[j] = scales[heads[j] + kv];
    return found;
}

// One KV head's part of a query: what all stretches need of it.
template <class S>
struct HeadOf {
    const typename Line<S>::Query* q;
    int64_t q_head, kv;
    const S *keys, *values;
};

// G heads of a KV head's group over a stretch: `to` their sums [G][v_dim].
template <class S, int G, int kDim>
static __attribute__((noinline)) void attend_stretch(const sglite::Attention& a, const HeadOf<S>& head,
                                                     const Stretch& s, const Ahead<S>& ahead, Softmax* softmax,
                                                     float* to) {
    alignas(64) float scores[G][kLongest];
    Shares<S> shares[G];
    float corrections[G];
    vf top[G];
    for (int g = 0; g < G; g++) top[g] = splat(kNothing);
    for (int64_t i = 0; i < s.vectors * kLanes; i += kLanes) {
        const vi seen = lanes() < (int32_t)(s.count - i);
        const vf scale = scales_of(a.k_scales, s.heads + i, head.kv) * splat(a.scale);
        vf found[G];
        score_slots<S, G, kDim>(found, head.q, head.q_head, head.keys, s.keys + i, ahead.keys + i, a.dim);
        for (int g = 0; g < G; g++) {
            const vf seen_scores = pick(seen, found[g] * scale, splat(kNothing));
            top[g] = larger(seen_scores, top[g]);
            store(scores[g] + i, seen_scores);
        }
    }
    for (int g = 0; g < G; g++) {
        const float found = largest(top[g]), most = found > softmax[g].most ? found : softmax[g].most;
        corrections[g] = most == softmax[g].most ? 1.0f : exponential(splat(softmax[g].most - most))[0];
        vf total = vf{};
        for (int64_t i = 0; i < s.vectors * kLanes; i += kLanes) {
            const vf shared = exponential(load<vf>(scores[g] + i) - splat(most));
            total += shared;
            Shares<S>::put(shares[g], i, shared * scales_of(a.v_scales, s.heads + i, head.kv));
        }
        softmax[g] = {most, softmax[g].total * corrections[g] + sum(total)};
    }
    constexpr int kVectors = G == 4 ? 4 : 8;
    if (a.v_dim % (kVectors * kLanes) == 0)
        add_values<S, G, kVectors>(to, a.v_dim, head.values, s, ahead.values, shares, corrections);
    else
        add_values<S, G, 2>(to, a.v_dim, head.values, s, ahead.values, shares, corrections);
}

template <class S, int G>
SG_INLINE void attend_heads(const sglite::Attention& a, const HeadOf<S>& head, const Stretch& s, const Ahead<S>& ahead,
                            Softmax* softmax, float* to) {
#ifdef __AVX512F__
    if (a.dim == 128) return attend_stretch<S, G, 128>(a, head, s, ahead, softmax, to);
    if (a.dim == 64) return attend_stretch<S, G, 64>(a, head, s, ahead, softmax, to);
#endif
    attend_stretch<S, G, 0>(a, head, s, ahead, softmax, to);
}

// A stretch for all heads of a KV head's group.
template <class S>
SG_INLINE void attend_group(const sglite::Attention& a, HeadOf<S> head, const Stretch& s, const Ahead<S>& ahead,
                            Softmax* softmax, float* to) {
    const int64_t group = a.heads / a.kv_heads;
    for (int64_t g = 0; g < group;) {
        const int64_t left = group - g, taken = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (taken == 4)
            attend_heads<S, 4>(a, head, s, ahead, softmax + g, to + g * a.v_dim);
        else if (taken == 2)
            attend_heads<S, 2>(a, head, s, ahead, softmax + g, to + g * a.v_dim);
        else
            attend_heads<S, 1>(a, head, s, ahead, softmax + g, to + g * a.v_dim);
        head.q += taken * head.q_head;
        g += taken;
    }
}

// The stretch of a piece with which a token begins.
SG_INLINE int64_t first_slot(const sglite::Attention& a, const sglite::AttentionPiece& piece, int64_t token) {
    return most(piece.from, first_seen(a, a.ends[token]));
}

SG_INLINE int64_t last_slot(const sglite::Attention& a, const sglite::AttentionPiece& piece, int64_t token) {
    return least(piece.to, a.ends[token]);
}

// With what a piece begins; nothing is found where its first token sees nothing of it.
SG_INLINE void find_first(const sglite::Attention& a, const sglite::AttentionPiece& piece, Stretch& to) {
    const int64_t token = a.order[piece.token], from = first_slot(a, piece, token), end = last_slot(a, piece, token);
    if (from < end) Stretch::find(to, a, piece.row, from, end);
}

// Queries of a token as the pool's numbers want them: as they are, or as floats.
template <class T>
SG_INLINE void take_query(const sglite::Attention& a, int64_t token, const T*& q, int64_t& q_head) {
    q = (const T*)a.q + token * a.q_token;
    q_head = a.q_head;
}

SG_INLINE void take_query_as_floats(const sglite::Attention& a, int64_t token, const float*& q, int64_t& q_head,
                                    float* to) {
    for (int64_t h = 0; h < a.heads; h++)
        for (int64_t d = 0; d < a.dim; d += kLanes)
            store(to + h * a.dim + d, load_floats((const bf16*)a.q + token * a.q_token + h * a.q_head + d));
    q = to;
    q_head = a.dim;
}

// One token with the heads of several KV heads. `after`: what this thread probably does next, or null.
template <class T, class S>
static void attend_query(const sglite::Attention& a, const sglite::AttentionPiece& piece, int64_t token,
                         const sglite::AttentionPiece* after, char* scratch) {
    const int64_t group = a.heads / a.kv_heads, end = last_slot(a, piece, token);
    const int64_t first_head = piece.kv_head * group, heads = piece.kv_heads * group;
    alignas(64) float own[sglite::kStateFloats];
    Softmax softmax[sglite::kStateFloats / kLanes];
    float* part = is_parted(a, token) ? part_of(a, token, piece.part) : nullptr;
    float* sums = part ? part + first_head * a.v_dim : own;
    memset(sums, 0, heads * a.v_dim * sizeof(float));
    for (int64_t h = 0; h < heads; h++) softmax[h] = begin(a, token, first_head + h);
    HeadOf<S> head;
    if constexpr (sizeof(T) == 2 && sizeof(S) == 1)
        take_query_as_floats(a, token, head.q, head.q_head, (float*)scratch);
    else
        take_query(a, token, head.q, head.q_head);
    const auto* q = head.q;
    Stretch now, next;
    Ahead<S> ahead;
    const int64_t from = first_slot(a, piece, token);
    if (from < end) Stretch::find(next, a, piece.row, from, end);
    for (int64_t s = from; s < end; s += now.count) {
        now = next;
        const sglite::AttentionPiece* following = s + now.count < end ? &piece : after;
        if (following == &piece) Stretch::find(next, a, piece.row, s + now.count, end);
        if (following == after && after) find_first(a, *after, next);
        for (int64_t kv = piece.kv_head; kv < piece.kv_head + piece.kv_heads; kv++) {
            const int64_t h = (kv - piece.kv_head) * group;
            head.kv = kv;
            head.q = q + kv * group * head.q_head;
            head.keys = (const S*)a.k + kv * a.dim;
            head.values = (const S*)a.v + kv * a.v_dim;
            Ahead<S>::find(ahead, a, following ? *following : piece, next, kv - piece.kv_head);
            attend_group(a, head, now, ahead, softmax + h, sums + h * a.v_dim);
        }
    }
    Shares<S>::settle(sums, heads * a.v_dim);
    if (part) memcpy(softmax_of(a, part) + first_head, softmax, heads * sizeof(Softmax));
    for (int64_t h = 0; h < heads && !part; h++)
        write_head<T>(a, token, first_head + h, sums + h * a.v_dim, softmax[h].total);
}

}  // namespace
