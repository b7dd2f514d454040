// Experts: products of the tokens that have chosen one with its weights, and products with a matrix for every head.
#pragma once

#include "product.hpp"
#include "rowwise.hpp"

namespace {

template <class T>
SG_INLINE const T* item_of(const void* stack, int64_t item, int64_t size) {
    return stack ? (const T*)stack + item * size : nullptr;
}

// The rows of x that a piece multiplies, one behind the other; where there is one it stays where it is.
template <class T>
SG_INLINE const T* rows_of(const sglite::Experts& e, const sglite::ExpertPiece& piece, T* room, int64_t* stride) {
    const int64_t size = e.gate_up.ins;
    const auto row = [&](int64_t i) { return (const T*)e.x + e.order[piece.first + i] / e.chosen * e.x_stride; };
    *stride = size;
    if (piece.pairs == 1) return row(0);
    for (int64_t i = 0; i < piece.pairs; i++) memcpy(room + i * size, row(i), size * sizeof(T));
    return room;
}

template <class T>
static void expert_up(const sglite::Experts& e, int64_t number, char* scratch) {
    const sglite::ExpertPiece& piece = e.pieces[number / e.columns];
    const int64_t ins = e.gate_up.ins, inner = e.down.ins, blocks = inner / kLanes, block = kLanes * ins;
    const int64_t first = number % e.columns * e.block_step, end = least(blocks, first + e.block_step);
    constexpr int64_t kWidth = sglite::kExpertBlocks * kLanes;
    float* gates = (float*)scratch;
    float* ups = gates + sglite::kExpertRows * kWidth;
    int64_t stride;
    const T* x = rows_of<T>(e, piece, (T*)(ups + sglite::kExpertRows * kWidth), &stride);
    const T* weights = item_of<T>(e.gate_up.data, piece.expert, 2 * inner * ins);
    const T* bias = item_of<T>(e.gate_up_bias, piece.expert, 2 * inner);
    for (int64_t b = first; b < end; b += sglite::kExpertBlocks) {
        const int64_t count = least(sglite::kExpertBlocks, end - b);
        panel<T>(piece.pairs, x, stride, weights + b * block, block, count, ins,
                 {gates, kWidth, bias ? bias + b * kLanes : nullptr, 0, e.type});
        panel<T>(piece.pairs, x, stride, weights + (blocks + b) * block, block, count, ins,
                 {ups, kWidth, bias ? bias + inner + b * kLanes : nullptr, 0, e.type});
        for (int64_t r = 0; r < piece.pairs; r++) {
            T* out = (T*)e.hidden + (piece.first + r) * inner + b * kLanes;
            for (int64_t i = 0; i < count * kLanes; i += kLanes)
                store_floats(out + i, activated(load<vf>(gates + r * kWidth + i), load<vf>(ups + r * kWidth + i),
                                                e.activation));
        }
    }
}

template <class T>
static void expert_down(const sglite::Experts& e, int64_t number) {
    const sglite::ExpertPiece& piece = e.pieces[number / e.columns];
    const int64_t ins = e.down.ins, outs = e.down.outs, block = kLanes * ins;
    const int64_t first = number % e.columns * e.block_step;
    const T* bias = item_of<T>(e.down_bias, piece.expert, outs);
    panel<T>(piece.pairs, (const T*)e.hidden + piece.first * ins, ins,
             item_of<T>(e.down.data, piece.expert, outs * ins) + first * block, block,
             least(e.block_step, outs / kLanes - first), ins,
             {(T*)e.results + piece.first * outs + first * kLanes, outs, bias ? bias + first * kLanes : nullptr, e.type,
              e.type});
}

template <class T>
static void mix_row(const sglite::Experts& e, int64_t token) {
    const int64_t size = e.down.outs;
    const float* shares = e.shares + token * e.chosen;
    const int32_t* places = e.places + token * e.chosen;
    for (int64_t i = 0; i < size; i += kLanes) {
        vf total = vf{};
        for (int64_t c = 0; c < e.chosen; c++) total += shares[c] * load_floats((const T*)e.results + places[c] * size + i);
        store_floats((T*)e.out + token * size + i, total);
    }
}

template <class T>
static void mix_rows(const sglite::Experts& e, int64_t piece) {
    const int64_t end = least(e.tokens, (piece + 1) * e.row_step);
    for (int64_t token = piece * e.row_step; token < end; token++) mix_row<T>(e, token);
}

static void experts_up(void* job, int64_t piece, int thread) {
    const sglite::Experts& e = *(const sglite::Experts*)job;
    char* scratch = e.scratch + thread * e.scratch_size;
    if (e.type)
        expert_up<bf16>(e, piece, scratch);
    else
        expert_up<float>(e, piece, scratch);
}

static void experts_down(void* job, int64_t piece, int) {
    const sglite::Experts& e = *(const sglite::Experts*)job;
    if (e.type)
        expert_down<bf16>(e, piece);
    else
        expert_down<float>(e, piece);
}

static void experts_mix(void* job, int64_t piece, int) {
    const sglite::Experts& e = *(const sglite::Experts*)job;
    if (e.type)
        mix_rows<bf16>(e, piece);
    else
        mix_rows<float>(e, piece);
}

template <class T>
static void each_piece(const sglite::Each& e, int64_t piece) {
    const sglite::Matrices& w = e.weights;
    const int64_t blocks = w.outs / kLanes, block = kLanes * w.ins;
    const int64_t columns = (blocks + e.block_step - 1) / e.block_step;
    const int64_t first = piece % columns * e.block_step;
    const int64_t item = piece / columns % w.count, row = piece / columns / w.count * e.row_step;
    const int64_t out_row = w.count * w.outs;
    panel<T>(least(e.row_step, e.rows - row), (const T*)e.x + row * e.x_row + item * e.x_item, e.x_row,
             (const T*)w.data + item * w.outs * w.ins + first * block, block, least(e.block_step, blocks - first), w.ins,
             {(T*)e.out + row * out_row + item * w.outs + first * kLanes, out_row, nullptr, w.kind, w.kind});
}

static void each(void* job, int64_t piece, int) {
    const sglite::Each& e = *(const sglite::Each*)job;
    if (e.weights.kind)
        each_piece<bf16>(e, piece);
    else
        each_piece<float>(e, piece);
}

}  // namespace
