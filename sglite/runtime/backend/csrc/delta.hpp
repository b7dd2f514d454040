// Recurrent layers: the convolution over a row's last inputs, and the gated delta rule token by token, both over states
// that are updated in place.
//
// Columns of the memory of a head do not depend on each other. Where there are several tokens a stripe of columns that
// stays in the cache goes over all of them; a single token takes the memory as it lies.
#pragma once

#include "mixers.hpp"
#include "rowwise.hpp"

namespace {

SG_INLINE vf silu(vf x) { return x * sigmoid(x); }

constexpr int64_t kChannels = sglite::kChannels;

// Numbers of a channel's own, [channels][n], channel by channel: to [n][channels], or back.
template <class T>
SG_INLINE void spread(const T* from, int64_t n, int64_t channels, float (*to)[kChannels]) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < n; i++) to[i][c] = one(from[c * n + i]);
}

// The inputs of `taps` positions, the oldest first, `from` being the oldest's place in the ring.
template <class T>
SG_INLINE void gather(const float (*from)[kChannels], int64_t oldest, int64_t n, int64_t channels, T* to) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < n; i++) put(to + c * n + i, from[(oldest + i) % n][c]);
}

template <class T, int Taps>
static void convolve(const sglite::Conv& job, int64_t first, int64_t channels) {
    constexpr int kKept = Taps - 1;
    alignas(64) float taps[Taps][kChannels], kept[kKept][kChannels];
    spread((const T*)job.weight + first * Taps, Taps, channels, taps);
    for (int64_t row = 0; row < job.batch.rows; row++) {
        const int64_t begin = job.batch.query_from[row], end = job.batch.query_from[row + 1];
        if (begin == end) continue;
        T* state = (T*)job.states + (job.batch.slots[row] * job.channels + first) * kKept;
        spread(state, kKept, channels, kept);
        int64_t oldest = 0;
        for (int64_t token = begin; token < end; token++) {
            const T* x = (const T*)job.x + token * job.x_stride + first;
            T* out = (T*)job.out + token * job.channels + first;
            const float* before[kKept];
            for (int i = 0; i < kKept; i++) before[i] = kept[(oldest + i) % kKept];
            for (int64_t c = 0; c < channels; c += kLanes) {
                const vf now = load_floats(x + c);
                vf total = now * load<vf>(taps[kKept] + c);
                for (int i = 0; i < kKept; i++) total += load<vf>(before[i] + c) * load<vf>(taps[i] + c);
                store(kept[oldest] + c, now);
                store_floats(out + c, silu(total));
            }
            oldest = (oldest + 1) % kKept;
        }
        gather(kept, oldest, kKept, channels, state);
    }
}

template <class T>
static void conv_piece(const sglite::Conv& job, int64_t piece) {
    const int64_t first = piece * kChannels, channels = least(kChannels, job.channels - first);
    switch (job.taps) {
        case 2: return convolve<T, 2>(job, first, channels);
        case 3: return convolve<T, 3>(job, first, channels);
        case 4: return convolve<T, 4>(job, first, channels);
    }
}

static void conv(void* job, int64_t piece, int) {
    const sglite::Conv& c = *(const sglite::Conv*)job;
    if (c.type)
        conv_piece<bf16>(c, piece);
    else
        conv_piece<float>(c, piece);
}

// One token as the rule sees it.
struct Read {
    const float *q, *k;  // of length 1
    float kept, written;  // exp(decay), beta
};

// What the memory holds under a key: C vectors of columns, `state` at its first row.
template <int C>
SG_INLINE void look_up(const float* key, const float* state, int64_t stride, int64_t k_dim, vf found[C]) {
    for (int c = 0; c < C; c++) found[c] = vf{};
    for (int64_t i = 0; i < k_dim; i++)
        for (int c = 0; c < C; c++) found[c] += key[i] * load<vf>(state + i * stride + c * kLanes);
}

// One token: the memory forgets, is written to and read, and looked up under the next token's key in one go.
template <class T, int C>
SG_INLINE void remember(const Read& x, const float* next_key, float* state, int64_t stride, int64_t k_dim, const T* v,
                        T* out, vf found[C]) {
    vf delta[C], read[C], next[C];
    for (int c = 0; c < C; c++) {
        delta[c] = (load_floats(v + c * kLanes) - x.kept * found[c]) * x.written;
        read[c] = next[c] = vf{};
    }
    for (int64_t i = 0; i < k_dim; i++)
        for (int c = 0; c < C; c++) {
            float* at = state + i * stride + c * kLanes;
            const vf now = load<vf>(at) * x.kept + x.k[i] * delta[c];
            store(at, now);
            read[c] += x.q[i] * now;
            next[c] += next_key[i] * now;
        }
    for (int c = 0; c < C; c++) {
        store_floats(out + c * kLanes, read[c]);
        found[c] = next[c];
    }
}

// x scaled to length 1, times `scale`.
template <class T>
SG_INLINE void unit(const T* x, int64_t size, float scale, float* out) {
    vf squares = vf{};
    for (int64_t i = 0; i < size; i += kLanes) {
        const vf v = load_floats(x + i);
        squares += v * v;
    }
    const float by = inverse_root(sum(squares) + 1e-6f) * scale;
    for (int64_t i = 0; i < size; i += kLanes) store(out + i, load_floats(x + i) * by);
}

template <class T, int C>
static void stripes(const sglite::Delta& d, int64_t first, const Read* reads, int64_t tokens, int64_t head,
                    float* state, int64_t* column) {
    for (; *column + C * kLanes <= d.v_dim; *column += C * kLanes) {
        vf found[C];
        look_up<C>(reads[0].k, state + *column, d.v_dim, d.k_dim, found);
        for (int64_t t = 0; t < tokens; t++)
            remember<T, C>(reads[t], reads[least(t + 1, tokens - 1)].k, state + *column, d.v_dim, d.k_dim,
                           (const T*)d.v + (first + t) * d.v_token + head * d.v_dim + *column,
                           (T*)d.out + ((first + t) * d.v_heads + head) * d.v_dim + *column, found);
    }
}

#ifdef __AVX512F__
constexpr int kSingle = 8, kSeveral = 2;
#else
constexpr int kSingle = 2, kSeveral = 2;
#endif

// One value head of one row.
template <class T>
static void delta_head(const sglite::Delta& d, int64_t row, int64_t head) {
    alignas(64) float keys[sglite::kDeltaTokens][sglite::kDeltaDim], queries[sglite::kDeltaTokens][sglite::kDeltaDim];
    Read reads[sglite::kDeltaTokens];
    const int64_t end = d.batch.query_from[row + 1], key_head = head / (d.v_heads / d.k_heads);
    float* state = d.states + (d.batch.slots[row] * d.v_heads + head) * d.k_dim * d.v_dim;
    const float scale = inverse_root((float)d.k_dim);
    for (int64_t first = d.batch.query_from[row]; first < end; first += sglite::kDeltaTokens) {
        const int64_t tokens = least(sglite::kDeltaTokens, end - first);
        for (int64_t t = 0; t < tokens; t++) {
            unit((const T*)d.q + (first + t) * d.q_token + key_head * d.k_dim, d.k_dim, scale, queries[t]);
            unit((const T*)d.k + (first + t) * d.k_token + key_head * d.k_dim, d.k_dim, 1.0f, keys[t]);
            const int64_t at = (first + t) * d.v_heads + head;
            reads[t] = {queries[t], keys[t], exponential(splat(d.decay[at]))[0], d.beta[at]};
        }
        int64_t column = 0;
        if (tokens == 1) stripes<T, kSingle>(d, first, reads, tokens, head, state, &column);
        stripes<T, kSeveral>(d, first, reads, tokens, head, state, &column);
        stripes<T, 1>(d, first, reads, tokens, head, state, &column);
    }
}

static void delta(void* job, int64_t piece, int) {
    const sglite::Delta& d = *(const sglite::Delta*)job;
    if (d.type)
        delta_head<bf16>(d, piece / d.v_heads, piece % d.v_heads);
    else
        delta_head<float>(d, piece / d.v_heads, piece % d.v_heads);
}

template <class T>
static void gated_norm_row(const sglite::GatedNorm& n, int64_t row) {
    const int64_t token = row / n.heads, head = row % n.heads;
    const T* x = (const T*)n.x + token * n.x_token + head * n.size;
    const T* gate = (const T*)n.gate + token * n.gate_token + head * n.size;
    T* out = (T*)n.out + row * n.size;
    const float scale = scale_of(x, n.size, n.eps);
    for (int64_t i = 0; i < n.size; i += kLanes)
        store_floats(out + i, load_floats(x + i) * scale * load<vf>(n.weight + i) * silu(load_floats(gate + i)));
}

static void gated_norm(void* job, int64_t piece, int) {
    const sglite::GatedNorm& n = *(const sglite::GatedNorm*)job;
    const int64_t end = least(n.tokens * n.heads, (piece + 1) * n.row_step);
    for (int64_t row = piece * n.row_step; row < end; row++) {
        if (n.type)
            gated_norm_row<bf16>(n, row);
        else
            gated_norm_row<float>(n, row);
    }
}

}  // namespace
