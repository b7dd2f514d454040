// Weights between their two forms, as rows and packed; rows of packed ones.
#include <cstring>

#include "engine.hpp"

namespace sglite {
namespace {

constexpr int64_t kBlock = 16;

// One block between its two forms, in place: as rows [16][ins], and packed in steps of 4 bytes [ins / n][16].
struct Packing {
    char* weight;
    int64_t steps, blocks;  // numbers of 4 bytes in a row; blocks
    int32_t kind;
    bool back;
    std::vector<std::vector<char>>* scratch;
};

// Every second nibble of a word, from the first, side by side.
uint32_t every_second(uint32_t word) {
    word &= 0x0f0f0f0fu;
    word = (word | word >> 4) & 0x00ff00ffu;
    return (word | word >> 8) & 0xffffu;
}

uint32_t apart(uint32_t half) {
    half = (half | half << 8) & 0x00ff00ffu;
    return (half | half << 4) & 0x0f0f0f0fu;
}

// Codes of eight bits become unsigned; of four, those of even inputs get into the low half of a word, others into the
// high half.
uint32_t packed(uint32_t word, int32_t kind) {
    if (kind == 3) return every_second(word) | every_second(word >> 4) << 16;
    return kind == 2 ? word ^ 0x80808080u : word;
}

uint32_t unpacked(uint32_t word, int32_t kind) {
    if (kind == 3) return apart(word & 0xffffu) | apart(word >> 16) << 4;
    return kind == 2 ? word ^ 0x80808080u : word;
}

void pack_block(void* job, int64_t block, int thread) {
    const auto& p = *static_cast<Packing*>(job);
    auto& room = (*p.scratch)[thread];
    const int64_t numbers = kBlock * p.steps;
    room.resize(numbers * 4);
    auto* to = reinterpret_cast<uint32_t*>(p.weight) + block * numbers;
    auto* from = reinterpret_cast<uint32_t*>(room.data());
    std::memcpy(from, to, numbers * 4);
    for (int64_t first = 0; first < p.steps; first += kBlock)  // squares of whole cache lines
        for (int64_t lane = 0; lane < kBlock; lane++) {
            const int64_t end = least(first + kBlock, p.steps);
            if (p.back)
                for (int64_t i = first; i < end; i++)
                    to[lane * p.steps + i] = unpacked(from[i * kBlock + lane], p.kind);
            else
                for (int64_t i = first; i < end; i++) to[i * kBlock + lane] = packed(from[lane * p.steps + i], p.kind);
        }
}

int64_t steps_of(int64_t ins, int32_t kind) { return bytes_of(ins, kind) / 4; }

void put(void* out, int64_t at, float x, int32_t type) {
    if (type == 0) {
        static_cast<float*>(out)[at] = x;
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    static_cast<uint16_t*>(out)[at] = (nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// `word` of a row of codes as numbers.
void read_codes(const Weight& weight, int64_t block, int64_t lane, int64_t step, uint32_t word, void* out, int64_t at) {
    const int64_t bits = weight.kind == 2 ? 8 : 4, count = 32 / bits, groups = weight.ins / weight.group;
    const int64_t table = (block * groups + step * count / weight.group) * kBlock + lane;
    const float zero = weight.zeros ? weight.zeros[table] : 0.0f;
    const uint32_t plain = unpacked(word, weight.kind);
    for (int64_t i = 0; i < count; i++) {
        const uint32_t field = plain >> (i * bits);
        const int code = weight.kind == 2 ? static_cast<int8_t>(field & 255) : static_cast<int>(field & 15) - 8;
        put(out, at + i, (static_cast<float>(code) - zero) * weight.scales[table], weight.type);
    }
}

}  // namespace

void Engine::arrange(void* weight, int64_t outs, int64_t ins, int32_t kind, bool back) {
    Packing job{static_cast<char*>(weight), steps_of(ins, kind), outs / kBlock, kind, back, &scratch};
    threads.run(pack_block, &job, job.blocks);
}

void read_rows(const Weight& weight, const int64_t* ids, int64_t count, void* out) {
    const int64_t steps = steps_of(weight.ins, weight.kind);
    auto* words = static_cast<uint32_t*>(out);
    for (int64_t i = 0; i < count; i++) {
        const int64_t block = ids[i] / kBlock, lane = ids[i] % kBlock;
        const auto* from = static_cast<const uint32_t*>(weight.data) + block * kBlock * steps + lane;
        for (int64_t s = 0; s < steps; s++) {
            const uint32_t word = from[s * kBlock];
            if (weight.kind < 2)
                words[i * steps + s] = word;
            else
                read_codes(weight, block, lane, s, word, out, i * weight.ins + s * (weight.ins / steps));
        }
    }
}

}  // namespace sglite
