// The largest product of each row and its place, without the products being written: greedy sampling in the head.
#pragma once

#include "product.hpp"

namespace {

// A stretch of a row's numbers, the first of them number `first`: into the largest so far and its place.
SG_INLINE void look(const float* sums, int64_t count, int64_t first, float& top, int64_t& id) {
    vf best = splat(-__builtin_inff()), broken = vf{};
    vi at = vi{};  // of each lane's first largest
    const vi lane = vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t i = 0; i < count; i += kLanes) {
        const vf found = load<vf>(sums + i);
        const Lanes larger_now = more(found, best);
        best = pick(larger_now, found, best);
        at = pick(larger_now, lane + (int32_t)i, at);
        broken = pick(equal(found, found), broken, found);
    }
    const float found = largest(best), bad = sum(broken);
    if (bad != bad) {
        top = bad;
        return;
    }
    if (found < top || top != top) return;
    int32_t places[kLanes];
    store(places, pick(more(splat(found), best), vi{} + 0x7fffffff, at));
    int64_t place = places[0];
    for (int i = 1; i < kLanes; i++) place = least(place, places[i]);
    if (found > top || first + place < id) id = first + place;
    top = found;
}

template <class T>
static void greatest_piece(const sglite::Greatest& g, int64_t number, int thread) {
    const sglite::Product& p = g.product;
    const Piece piece = Piece::of(p, number);
    float* sums = g.room + thread * g.room_size;
    const int64_t count = piece.blocks * kLanes;
    compute<T>(p, piece, {sums, count, nullptr, 0, 0});
    const int64_t row = p.groups ? group_start(p, piece.row) : piece.row;
    const int64_t end = p.groups ? group_start(p, piece.end) : piece.end;
    for (int64_t r = row; r < end; r++) {
        const int64_t at = thread * p.rows + r;
        look(sums + (r - row) * count, count, piece.block * kLanes, g.tops[at], g.ids[at]);
    }
}

static void greatest(void* job, int64_t piece, int thread) {
    const sglite::Greatest& g = *(const sglite::Greatest*)job;
    if (g.product.weight.kind)
        greatest_piece<bf16>(g, piece, thread);
    else
        greatest_piece<float>(g, piece, thread);
}

}  // namespace
