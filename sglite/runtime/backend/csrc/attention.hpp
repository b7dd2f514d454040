// Attention straight from the pages: one piece, and what puts the parts of a token together.
#pragma once

#include "attention_query.hpp"
#include "attention_tile.hpp"

namespace {

template <class T, class S>
static void attention_piece(const sglite::Attention& a, int64_t number, int thread) {
    const sglite::AttentionPiece& piece = a.pieces[number];
    char* scratch = a.scratch + thread * a.scratch_size;
    if (piece.tile) return attend_tile<T, S>(a, piece, scratch);
    const sglite::AttentionPiece* after = number + a.threads < a.num_pieces ? &a.pieces[number + a.threads] : nullptr;
    for (int64_t i = 0; i < piece.tokens; i++)
        attend_query<T, S>(a, piece, a.order[piece.token + i], after, scratch);
}

static void attention(void* job, int64_t piece, int thread) {
    const sglite::Attention& a = *(const sglite::Attention*)job;
    if (a.type)
        a.k_scales ? attention_piece<bf16, int8_t>(a, piece, thread) : attention_piece<bf16, bf16>(a, piece, thread);
    else
        a.k_scales ? attention_piece<float, int8_t>(a, piece, thread) : attention_piece<float, float>(a, piece, thread);
}

// A head of a token that has parts: their sums, each as large as its softmax says.
template <class T>
static void combine_head(const sglite::Attention& a, int64_t token, int64_t head) {
    const int64_t count = a.part_from[token + 1] - a.part_from[token];
    float top = a.sinks ? a.sinks[head] : kNothing;
    for (int64_t p = 0; p < count; p++) {
        const float found = softmax_of(a, part_of(a, token, p))[head].most;
        top = found > top ? found : top;
    }
    alignas(64) float sums[sglite::kStateFloats];
    memset(sums, 0, a.v_dim * sizeof(float));
    float total = a.sinks ? exponential(splat(a.sinks[head] - top))[0] : 0.0f;
    for (int64_t p = 0; p < count; p++) {
        float* part = part_of(a, token, p);
        const Softmax found = softmax_of(a, part)[head];
        const float share = exponential(splat(found.most - top))[0];
        total += found.total * share;
        for (int64_t d = 0; d < a.v_dim; d += kLanes)
            store(sums + d, load<vf>(sums + d) + load<vf>(part + head * a.v_dim + d) * share);
    }
    write_head<T>(a, token, head, sums, total);
}

static void combine(void* job, int64_t piece, int) {
    const sglite::Attention& a = *(const sglite::Attention*)job;
    for (int64_t head = 0; head < a.heads; head++)
        a.type ? combine_head<bf16>(a, a.parted[piece], head) : combine_head<float>(a, a.parted[piece], head);
}

}  // namespace
