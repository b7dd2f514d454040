// Latent attention straight from the pages. All heads read the same latents, so that queries times heads are rows of a
// tile, which meets a stretch of slots: scores, a softmax that is corrected when a larger one comes along, sums.
//
// Nothing is packed: scores are dot products of rows as they lie; for the sums two slots at a time are put together in
// registers as a product wants its weights.
#pragma once

#include "mixers.hpp"
#include "vectors.hpp"

namespace {

#ifdef __AVX512F__
constexpr int kScoreStep = 4, kSumRows = 8;
#else
constexpr int kScoreStep = 2, kSumRows = 2;
#endif

// Some numbers of a latent, how they meet those of a query, and how those of some slots meet their shares: as vectors of
// terms, in an order of their own which `write` undoes.
template <class T>
struct Latent;

template <>
struct Latent<bf16> {
    static constexpr int kNumbers = 32, kVectors = 2, kSlots = 2;
    typedef vu Terms;
    SG_INLINE vf dot(vf acc, const bf16* a, const bf16* b) { return dot_pairs(acc, load<vu>(a), load<vu>(b)); }
    SG_INLINE void join(const bf16* const* slots, int64_t d, vu to[kVectors]) {
        const vu a = load<vu>(slots[0] + d), b = load<vu>(slots[1] + d);
        to[0] = (a & 0xffffu) | (b << 16);
        to[1] = (a >> 16) | (b & 0xffff0000u);
    }
    SG_INLINE vu share(const bf16* shares) {
        uint32_t pair;
        memcpy(&pair, shares, 4);
        return splat_u(pair);
    }
    SG_INLINE vf add(vf acc, vu share, vu terms) { return dot_pairs(acc, share, terms); }
    SG_INLINE void write(bf16* to, const vf from[kVectors]) {
        store(to, rounded_pairs(from[0], from[1]));
    }
};

template <>
struct Latent<float> {
    static constexpr int kNumbers = 16, kVectors = 1, kSlots = 1;
    typedef vf Terms;
    SG_INLINE vf dot(vf acc, const float* a, const float* b) { return acc + load<vf>(a) * load<vf>(b); }
    SG_INLINE void join(const float* const* slots, int64_t d, vf to[kVectors]) { to[0] = load<vf>(slots[0] + d); }
    SG_INLINE vf share(const float* shares) { return splat(*shares); }
    SG_INLINE vf add(vf acc, vf share, vf terms) { return acc + share * terms; }
    SG_INLINE void write(float* to, const vf from[kVectors]) { store(to, from[0]); }
};

// The softmax of one row so far.
struct Weighed {
    float most, total;
};

// Where a thread keeps what it works on.
template <class T>
struct LatentTile {
    const T* q[sglite::kLatentRows];
    const T* slots[sglite::kLatentSlots];
    float* scores;  // [rows][kLatentSlots]
    T* shares;
    float* sums;  // [rows][v_dim], in the order of terms
    Weighed softmax[sglite::kLatentRows];
    float corrections[sglite::kLatentRows];

    explicit LatentTile(char* scratch) {
        scores = (float*)scratch;
        shares = (T*)(scores + sglite::kLatentRows * sglite::kLatentSlots);
        sums = (float*)(shares + sglite::kLatentRows * sglite::kLatentSlots);
    }
};

// Scores of 4 rows by 4 slots.
template <class T>
static __attribute__((noinline)) void score_tile(const T* const* q, const T* const* slots, int64_t dim, float* scores) {
    vf parts[kLanes];
    for (int r = 0; r < 4; r += kScoreStep)
        for (int s = 0; s < 4; s += kScoreStep) {
            vf acc[kScoreStep][kScoreStep];
            for (int i = 0; i < kScoreStep; i++)
                for (int j = 0; j < kScoreStep; j++) acc[i][j] = vf{};
            for (int64_t d = 0; d < dim; d += Latent<T>::kNumbers)
#pragma GCC unroll 4
                for (int j = 0; j < kScoreStep; j++)
#pragma GCC unroll 4
                    for (int i = 0; i < kScoreStep; i++)
                        acc[i][j] = Latent<T>::dot(acc[i][j], slots[s + j] + d, q[r + i] + d);
            for (int i = 0; i < kScoreStep; i++)
                for (int j = 0; j < kScoreStep; j++) parts[(r + i) * 4 + s + j] = acc[i][j];
        }
    const vf found = sums(parts);
    for (int r = 0; r < 4; r++) memcpy(scores + r * sglite::kLatentSlots, (const float*)&found + 4 * r, 16);
}

// sums of R rows = sums * correction + shares times latents, over `count` slots.
template <class T, int R>
static __attribute__((noinline)) void add_latents(LatentTile<T>& t, int64_t row, int64_t count, int64_t v_dim) {
    constexpr int kVectors = Latent<T>::kVectors, kSlots = Latent<T>::kSlots;
    float* to = t.sums + row * v_dim;
    const T* shares = t.shares + row * sglite::kLatentSlots;
    for (int64_t d = 0; d < v_dim; d += Latent<T>::kNumbers) {
        vf acc[R][kVectors];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            for (int j = 0; j < kVectors; j++)
                acc[r][j] = load<vf>(to + r * v_dim + d + j * kLanes) * t.corrections[row + r];
        for (int64_t s = 0; s < count; s += kSlots) {
            typename Latent<T>::Terms terms[kVectors];
            Latent<T>::join(t.slots + s, d, terms);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const typename Latent<T>::Terms share = Latent<T>::share(shares + r * sglite::kLatentSlots + s);
                for (int j = 0; j < kVectors; j++) acc[r][j] = Latent<T>::add(acc[r][j], share, terms[j]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            for (int j = 0; j < kVectors; j++) store(to + r * v_dim + d + j * kLanes, acc[r][j]);
    }
}

// Shares of a row, which sees the first `seen` slots of the stretch, of `count`; all rows see something of the first one.
template <class T>
SG_INLINE void weigh(LatentTile<T>& t, int64_t row, int64_t seen, int64_t count, float scale) {
    const float* scores = t.scores + row * sglite::kLatentSlots;
    T* shares = t.shares + row * sglite::kLatentSlots;
    Weighed& softmax = t.softmax[row];
    const vi lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vf masked[sglite::kLatentSlots / kLanes], top = splat(-__builtin_inff()), total = vf{};
    const int64_t vectors = (count + kLanes - 1) / kLanes;
    for (int64_t i = 0; i < vectors; i++) {
        const vi visible = lanes < (int32_t)(seen - i * kLanes);
        masked[i] = pick(visible, load<vf>(scores + i * kLanes) * scale, splat(-__builtin_inff()));
        top = larger(masked[i], top);
    }
    const float found = largest(top), most = found > softmax.most ? found : softmax.most;
    t.corrections[row] = most == softmax.most ? 1.0f : exponential(splat(softmax.most - most))[0];
    for (int64_t i = 0; i < vectors; i++) {
        const vf shared = exponential(masked[i] - splat(most));
        total += shared;
        store_floats(shares + i * kLanes, shared);
    }
    softmax = {most, softmax.total * t.corrections[row] + sum(total)};
}

template <class T>
static void find_latents(const sglite::Latents& a, int64_t row, int64_t first, int64_t end, const T** found) {
    const int32_t* table = a.tables + a.table_from[row];
    for (int64_t i = 0; i < sglite::kLatentSlots; i++) {
        const int64_t slot = least(first + i, end - 1);
        found[i] = (const T*)a.latents + ((int64_t)table[slot / a.page_size] * a.page_size + slot % a.page_size) * a.dim;
    }
}

template <class T>
static void attend_latents(const sglite::Latents& a, const sglite::LatentPiece& piece, char* scratch) {
    const int64_t rows = piece.queries * piece.heads, token = a.query_from[piece.row] + piece.query;
    const int64_t seen_first = a.starts[piece.row] + piece.query + 1, end = seen_first + piece.queries - 1;
    LatentTile<T> t(scratch);
    for (int64_t r = 0; r < (rows + 3) / 4 * 4; r++) {  // what is missing of the last four repeats the last
        const int64_t at = least(r, rows - 1);
        t.q[r] = (const T*)a.q + (token + at / piece.heads) * a.q_token + (piece.head + at % piece.heads) * a.q_head;
        t.softmax[r] = {-__builtin_inff(), 0.0f};
    }
    memset(t.sums, 0, rows * a.v_dim * sizeof(float));
    for (int64_t first = 0; first < end; first += sglite::kLatentSlots) {
        const int64_t count = least(sglite::kLatentSlots, end - first);
        find_latents(a, piece.row, first, end, t.slots);
        for (int64_t s = 0; s < count; s += 4)
            for (int64_t r = 0; r < rows; r += 4)
                score_tile(t.q + r, t.slots + s, a.dim, t.scores + r * sglite::kLatentSlots + s);
        for (int64_t r = 0; r < rows; r++) weigh(t, r, seen_first + r / piece.heads - first, count, a.scale);
        int64_t r = 0;
        for (; r + kSumRows <= rows; r += kSumRows) add_latents<T, kSumRows>(t, r, count, a.v_dim);
        for (; r < rows; r++) add_latents<T, 1>(t, r, count, a.v_dim);
    }
    for (int64_t r = 0; r < rows; r++) {
        T* out = (T*)a.out + ((token + r / piece.heads) * a.heads + piece.head + r % piece.heads) * a.v_dim;
        const float* from = t.sums + r * a.v_dim;
        for (int64_t d = 0; d < a.v_dim; d += Latent<T>::kNumbers) {
            vf line[Latent<T>::kVectors];
            for (int j = 0; j < Latent<T>::kVectors; j++)
                line[j] = load<vf>(from + d + j * kLanes) / t.softmax[r].total;
            Latent<T>::write(out + d, line);
        }
    }
}

static void latents(void* job, int64_t piece, int thread) {
    const sglite::Latents& a = *(const sglite::Latents*)job;
    if (a.type)
        attend_latents<bf16>(a, a.pieces[piece], a.scratch + thread * a.scratch_size);
    else
        attend_latents<float>(a, a.pieces[piece], a.scratch + thread * a.scratch_size);
}

}  // namespace
