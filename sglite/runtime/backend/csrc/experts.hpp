// Experts: products of the tokens that have chosen one with its weights, and products with a matrix for every head.
#pragma once

#include "codes.hpp"
#include "mixers.hpp"
#include "product.hpp"
#include "rowwise.hpp"

namespace {

template <class T>
SG_INLINE const T* item_of(const void* stack, int64_t item, int64_t size) {
    return stack ? (const T*)stack + item * size : nullptr;
}

// Rows that are multiplied with an expert, and what is made of them before where it has codes.
template <class T>
struct ExpertRows {
    const T* x;
    int64_t stride;
    sglite::Inputs inputs;
};

// Rows `token(i)` of a table with `size` bytes each, which are `stride` bytes apart, one behind the other; where there
// is one row it stays where it is. `room` is moved behind them.
template <class Token>
SG_INLINE char* brought(const void* table, int64_t stride, int64_t size, int64_t count, Token token, char** room) {
    if (count == 1) return (char*)table + token(0) * stride;
    char* to = *room;
    for (int64_t i = 0; i < count; i++) memcpy(to + i * size, (const char*)table + token(i) * stride, size);
    *room = to + (count * size + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
    return to;
}

// The rows of x that a piece multiplies.
template <class T>
SG_INLINE ExpertRows<T> rows_of(const sglite::Experts& e, const sglite::ExpertPiece& piece, char* room) {
    const int64_t ins = e.gate_up.ins, count = piece.pairs;
    const auto token = [&](int64_t i) { return (int64_t)e.order[piece.first + i] / e.chosen; };
    ExpertRows<T> rows = {nullptr, ins, {}};
    if (e.gate_up.kind != 2)
        rows.x = (const T*)brought(e.x, e.x_stride * sizeof(T), ins * sizeof(T), count, token, &room);
    if (e.gate_up.kind < 2) return rows;
    sglite::Inputs& in = rows.inputs = *e.inputs;
    const int64_t table = ins / in.group * 4;
    if (e.gate_up.kind == 2) {
        in.codes = brought(in.codes, in.stride, in.stride, count, token, &room);
        in.scales = (float*)brought(in.scales, table, table, count, token, &room);
    }
    if (e.gate_up.kind == 2 || e.gate_up.zeros) in.sums = brought(in.sums, table, table, count, token, &room);
    return rows;
}

// Rows from `row` on times some blocks of an expert.
template <class T>
SG_INLINE void expert_panel(const sglite::Weight& weight, const ExpertRows<T>& from, int64_t row, int64_t rows,
                            int64_t first, int64_t blocks, const Written& to) {
    if (weight.kind < 2) {
        const int64_t block = kLanes * weight.ins;
        panel<T>(rows, from.x + row * from.stride, from.stride, (const T*)weight.data + first * block, block, blocks,
                 weight.ins, to);
        return;
    }
    sglite::Product job{};
    job.x = from.x, job.x_stride = from.stride, job.weight = weight, job.inputs = &from.inputs;
    if (weight.kind == 2)
        whole_product(job, first, blocks, row, rows, to);
    else
        nibble_product<T>(job, first, blocks, row, rows, to);
}

template <class T>
static void expert_up(const sglite::Experts& e, int64_t number, char* scratch) {
    const sglite::ExpertPiece& piece = e.pieces[number / e.columns];
    const int64_t inner = e.down.ins, blocks = inner / kLanes;
    const int64_t first = number % e.columns * e.block_step, end = least(blocks, first + e.block_step);
    constexpr int64_t kWidth = sglite::kExpertBlocks * kLanes;
    float* gates = (float*)scratch;
    float* ups = gates + sglite::kExpertRows * kWidth;
    const ExpertRows<T> x = rows_of<T>(e, piece, (char*)(ups + sglite::kExpertRows * kWidth));
    const sglite::Weight weight = e.gate_up.one(piece.expert);
    const T* bias = item_of<T>(e.gate_up_bias, piece.expert, 2 * inner);
    for (int64_t b = first; b < end; b += sglite::kExpertBlocks) {
        const int64_t count = least(sglite::kExpertBlocks, end - b);
        expert_panel<T>(weight, x, 0, piece.pairs, b, count,
                        {gates, kWidth, bias ? bias + b * kLanes : nullptr, 0, e.type});
        expert_panel<T>(weight, x, 0, piece.pairs, blocks + b, count,
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
    const int64_t outs = e.down.outs, first = number % e.columns * e.block_step;
    const T* bias = item_of<T>(e.down_bias, piece.expert, outs);
    const ExpertRows<T> x = {(const T*)e.hidden, e.down.ins, e.inputs ? *e.inputs : sglite::Inputs{}};
    expert_panel<T>(e.down.one(piece.expert), x, piece.first, piece.pairs, first,
                    least(e.block_step, outs / kLanes - first),
                    {(T*)e.results + piece.first * outs + first * kLanes, outs, bias ? bias + first * kLanes : nullptr,
                     e.type, e.type});
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
