// Running: closures, transitions, and what the text says about values that end.
#include "machine.hpp"

#include <algorithm>
#include <queue>
#include <tuple>


namespace sglite {
namespace {

constexpr int MAX_NESTED_ENDS = 64;  // leaves ending one inside the other without a byte between
constexpr size_t FEW_TRANSITIONS = 8;
constexpr size_t MAX_COMPLETION = 1u << 16;  // bytes; a text that is longer is not written out
constexpr int MAX_TRIES = 400;
constexpr uint64_t HASTE = 8;                 // what a byte to the end weighs against one that is written
constexpr size_t MAX_ASKED = 256;             // values at a time

uint64_t mix(uint64_t hash, uint64_t value) {
    hash ^= value + 0x9E3779B97F4A7C15ull + (hash << 6) + (hash >> 2);
    return hash * 0xFF51AFD7ED558CCDull;
}

}  // namespace

struct Program::Builder {
    struct Task {
        int pc;
        int level;
        uint64_t data;
        uint32_t extra;
        bool returned;  // the frame (pc, data, extra) over `level` was returned to
    };
    std::vector<Config> configs;
    bool accept = false;
    std::vector<Task> tasks;
    std::unordered_set<uint64_t> seen;     // tasks
    std::unordered_set<int> resumed;       // levels
    std::unordered_set<int> empty_rounds;  // levels of repetitions begun here whose body may match nothing

    void add(Task task) {
        uint64_t hash = mix(mix(mix(mix(task.returned, task.pc), task.level), task.data), task.extra);
        if (seen.insert(hash).second) tasks.push_back(task);
    }
};

void Program::clear_runtime() {
    levels_.clear();
    states_.clear();
    level_index_.clear();
    state_index_.clear();
    merged_.clear();
    leaving_.clear();
    sets_.assign(1, ItemSet{});
    set_index_.clear();
    mask_bytes_ = transition_bytes_ = 0;
    path_.assign(vocab->trie.max_depth + 2, DEAD);
    intern_level({}, true);
}

bool Program::start_afresh_if_large() {
    if (states_.size() + levels_.size() < limits_.max_states) return false;
    clear_runtime();
    epoch++;
    return true;
}

int Program::intern_level(std::vector<Frame> frames, bool bottom) {
    std::sort(frames.begin(), frames.end(), [](const Frame& l, const Frame& r) {
        return std::tie(l.pc, l.inside, l.data, l.extra, l.below) < std::tie(r.pc, r.inside, r.data, r.extra, r.below);
    });
    std::vector<Frame> unique;
    for (const Frame& frame : frames) {
        if (!unique.empty() && unique.back().same_place(frame)) unique.back().below = merge(unique.back().below, frame.below);
        else unique.push_back(frame);
    }
    uint64_t hash = bottom;
    for (const Frame& frame : unique) hash = mix(mix(mix(mix(hash, 2 * frame.pc + frame.inside), frame.data), frame.extra), frame.below);
    auto& bucket = level_index_[hash];
    for (const int id : bucket) {
        const Level& other = *levels_[id];
        if (other.bottom == bottom && other.frames.size() == unique.size() &&
            std::equal(unique.begin(), unique.end(), other.frames.begin(), [](const Frame& l, const Frame& r) {
                return l.same_place(r) && l.below == r.below;
            }))
            return id;
    }
    auto level = std::make_unique<Level>();
    level->bottom = bottom;
    level->distance = bottom ? 0 : UINT64_MAX >> 8;
    for (const Frame& frame : unique) {
        const Inst& inst = insts_[frame.pc];
        const Level& below = *levels_[frame.below];
        int64_t held = below.held_from;
        if (frame.inside && (inst.op == I_GUARD || (inst.op == I_UNIQUE && !inst.a))) {
            const int64_t own = static_cast<int64_t>(frame.data);
            held = held < 0 ? own : std::min(held, own);
        }
        if (held >= 0) level->held_from = level->held_from < 0 ? held : std::min(level->held_from, held);
        level->checking |= below.checking || (frame.inside && (inst.op == I_GUARD || inst.op == I_UNIQUE));
        const bool scope = frame.inside && inst.op == I_SCOPE;
        level->scope = std::max(level->scope, scope ? static_cast<int64_t>(frame.data) : below.scope);
        level->distance = std::min(level->distance, frame_cost(frame) + below.distance);
    }
    level->frames = std::move(unique);
    levels_.push_back(std::move(level));
    bucket.push_back(static_cast<int>(levels_.size()) - 1);
    return static_cast<int>(levels_.size()) - 1;
}

int Program::push(Frame frame) { return intern_level({frame}, false); }

// The level that goes on at an instruction; to return at once leaves nothing on the stack.
int Program::after(int pc, int below) { return pc == 0 ? below : push({pc, false, 0, 0, below}); }

int Program::merge(int left, int right) {
    if (left == right) return left;
    if (left > right) std::swap(left, right);
    const uint64_t key = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
    const auto found = merged_.find(key);
    if (found != merged_.end()) return found->second;
    std::vector<Frame> frames = levels_[left]->frames;
    frames.insert(frames.end(), levels_[right]->frames.begin(), levels_[right]->frames.end());
    const int made = intern_level(std::move(frames), levels_[left]->bottom || levels_[right]->bottom);
    merged_[key] = made;
    return made;
}

int Program::intern_state(Builder& builder) {
    std::vector<Config>& configs = builder.configs;
    std::sort(configs.begin(), configs.end(), [](const Config& l, const Config& r) {
        return std::tie(l.leaf, l.state, l.level) < std::tie(r.leaf, r.state, r.level);
    });
    size_t kept = 0;
    for (const Config& config : configs) {
        if (kept && configs[kept - 1].leaf == config.leaf && configs[kept - 1].state == config.state)
            configs[kept - 1].level = merge(configs[kept - 1].level, config.level);
        else
            configs[kept++] = config;
    }
    configs.resize(kept);
    if (kept == 0 && !builder.accept) return DEAD;
    if (kept > limits_.max_configs) throw Refusal{"the grammar is too ambiguous to be followed; simplify it"};
    uint64_t hash = builder.accept;
    for (const Config& config : configs) hash = mix(mix(mix(hash, config.leaf), config.state), config.level);
    auto& bucket = state_index_[hash];
    for (const int id : bucket) {
        const State& other = *states_[id];
        if (other.accept == builder.accept && other.configs.size() == kept &&
            std::equal(configs.begin(), configs.end(), other.configs.begin(), [](const Config& l, const Config& r) {
                return l.leaf == r.leaf && l.state == r.state && l.level == r.level;
            }))
            return id;
    }
    auto state = std::make_unique<State>();
    state->accept = builder.accept;
    state->distance = builder.accept ? 0 : UINT64_MAX >> 8;
    for (const Config& config : configs) {
        const Level& level = *levels_[config.level];
        state->checking |= level.checking;
        if (level.held_from >= 0)
            state->held_from = state->held_from < 0 ? level.held_from : std::min(state->held_from, level.held_from);
        state->distance = std::min(state->distance, leaves_[config.leaf]->distance(config.state) + level.distance);
    }
    transition_bytes_ += configs.size() * sizeof(Config);
    state->configs = std::move(configs);
    states_.push_back(std::move(state));
    bucket.push_back(static_cast<int>(states_.size()) - 1);
    return static_cast<int>(states_.size()) - 1;
}

int Program::start(Context& context) {
    Builder builder;
    builder.add({rule_entry_[root_], 0, 0, 0, false});
    close(context.text.size(), context, builder);
    const int made = intern_state(builder);
    if (made != DEAD) return made;
    // Even the empty text is checked when it ends: what nothing can follow is a state as well.
    states_.push_back(std::make_unique<State>());
    states_.back()->distance = UINT64_MAX >> 8;
    return static_cast<int>(states_.size()) - 1;
}

void Program::resume(int level, size_t position, Context& context, Builder& out) {
    if (out.empty_rounds.count(level) || !out.resumed.insert(level).second) return;
    const Level& here = *levels_[level];
    out.accept |= here.bottom;
    for (const Frame& frame : here.frames) {
        const Inst& inst = insts_[frame.pc];
        if (!frame.inside) {
            enter(frame.pc, frame.below, out);
            continue;
        }
        if ((inst.op == I_UNIQUE || inst.op == I_GUARD) && !holds(frame, position, context)) continue;
        out.add({frame.pc, frame.below, frame.data, frame.extra, true});
    }
}

// Goes on at an instruction, unless nothing comes of it.
void Program::enter(int pc, int level, Builder& out) {
    if (cost_[pc] < FAR) out.add({pc, level, 0, 0, false});
}

// Follows everything that needs no byte.
void Program::close(size_t position, Context& context, Builder& out) {
    while (!out.tasks.empty()) {
        const Builder::Task task = out.tasks.back();
        out.tasks.pop_back();
        const Inst& inst = insts_[task.pc];
        switch (inst.op) {
            case I_RETURN: resume(task.level, position, context, out); break;
            case I_LEAF: enter_leaf(inst, task.level, out); break;
            case I_CALL: enter(rule_entry_[inst.body], after(inst.next, task.level), out); break;
            case I_ALT:
                for (const int target : inst.targets) enter(target, task.level, out);
                break;
            case I_REPEAT: enter_repeat(task.pc, task.returned ? task.data + 1 : 0, task.level, out); break;
            case I_SHUFFLE: enter_shuffle(task.pc, task.data, task.extra, task.level, out); break;
            default:
                if (task.returned) {
                    enter(inst.next, task.level, out);
                } else {
                    // Containers inside a container are found from the outermost: only that one keeps its position.
                    uint64_t from = position;
                    if (inst.op == I_SCOPE && levels_[task.level]->scope >= 0) from = levels_[task.level]->scope;
                    else context.looked = true;
                    enter(inst.body, push({task.pc, true, from, 0, task.level}), out);
                }
        }
    }
}

void Program::enter_leaf(const Inst& inst, int level, Builder& out) {
    const Leaf& leaf = *leaves_[inst.a];
    if (leaf.closed(leaf.start)) enter(inst.next, level, out);
    else out.configs.push_back({inst.a, leaf.start, after(inst.next, level)});
}

void Program::enter_repeat(int pc, uint64_t count, int level, Builder& out) {
    const Inst& inst = insts_[pc];
    const uint64_t low = inst.a;
    if (inst.b < 0) count = std::min(count, low);
    if (count >= low || inst.nullable_body) enter(inst.next, level, out);
    if ((inst.b >= 0 && count >= static_cast<uint64_t>(inst.b)) || cost_[inst.body] >= FAR) return;
    const int inside = push({pc, true, count, 0, level});
    if (inst.nullable_body) out.empty_rounds.insert(inside);
    enter(inst.body, inside, out);
}

void Program::enter_shuffle(int pc, uint64_t used, uint32_t rest, int level, Builder& out) {
    const Inst& inst = insts_[pc];
    const size_t bodies = inst.targets.size() / 2;
    const auto has = [&](int item) { return used != 0 && sets_[used].has[item]; };
    const int count = sets_[used].count + static_cast<int>(rest);
    int missing = 0;
    for (int i = 0; i < inst.items; i++) missing += inst.required[i] && !has(i);
    if (!missing && count >= inst.a) enter(inst.next, level, out);
    if (inst.b >= 0 && count >= inst.b) return;
    for (size_t i = 0; i < bodies; i++) {
        const int item = static_cast<int>(i);
        const bool listed = item < inst.items;
        if (listed && has(item)) continue;
        // There must be room for what is still required.
        if (inst.b >= 0 && count + 1 + missing - (listed && inst.required[item] ? 1 : 0) > inst.b) continue;
        uint32_t others = rest + !listed;
        if (inst.b < 0) others = std::min<uint32_t>(others, std::max(inst.a, 1));
        const uint64_t now = listed ? with_item(used, item, inst.items) : used;
        const int inside = push({pc, true, now, others, level});
        if (levels_[inside]->distance < FAR) enter(inst.targets[count ? bodies + i : i], inside, out);
    }
}

uint64_t Program::with_item(uint64_t used, int item, int items) {
    std::vector<bool> has = used ? sets_[used].has : std::vector<bool>(items);
    has[item] = true;
    const auto [found, fresh] = set_index_.try_emplace(has, static_cast<int>(sets_.size()));
    if (fresh) sets_.push_back({std::move(has), sets_[used].count + 1});
    return found->second;
}

bool Program::holds(const Frame& frame, size_t position, Context& context) {
    context.looked = true;
    const Inst& inst = insts_[frame.pc];
    if (inst.op == I_UNIQUE) return is_unique(frame, position, context);
    std::string value = context.text.substr(frame.data, position - frame.data);
    const std::string key = std::to_string(inst.a) + ':' + value;
    const auto found = context.answers.find(key);
    if (found != context.answers.end()) return found->second;
    if (!context.asking) return false;
    context.unknown = true;
    for (const auto& [check, text] : context.pending)
        if (check == inst.a && text == value) return false;
    context.pending.emplace_back(inst.a, std::move(value));
    return false;
}

bool Program::is_unique(const Frame& frame, size_t position, Context& context) {
    if (levels_[frame.below]->scope < 0) return true;
    const char* text = context.text.data();
    const std::string value = canonical(text + frame.data, text + position);
    if (frame.data <= context.committed) return !earlier(frame, context).count(value);
    Containers containers(levels_[frame.below]->scope);
    containers.read(context.text, frame.data);
    return !completed_entries(text + containers.innermost(frame.data), text + frame.data).count(value);
}

// The entries before a value that began within what is committed.
const std::unordered_set<std::string>& Program::earlier(const Frame& frame, Context& context) {
    const size_t from = levels_[frame.below]->scope;
    const auto key = std::make_pair(from, static_cast<size_t>(frame.data));
    const auto found = context.seen.find(key);
    if (found != context.seen.end()) return found->second;
    if (context.containers_from != from || context.containers.at() > frame.data) {
        context.containers = Containers(from);
        context.containers_from = from;
    }
    context.containers.read(context.text, frame.data);
    const char* text = context.text.data();
    const size_t begin = context.containers.innermost(frame.data);
    return context.seen.emplace(key, completed_entries(text + begin, text + frame.data)).first->second;
}

// What follows a level if the values that end there are right.
int Program::assume(int level, Context& context) {
    Level& here = *levels_[level];
    if (here.assumed != -1) return here.assumed;
    const bool looked = context.looked;
    context.looked = false;
    Builder builder;
    builder.accept = here.bottom;
    bool checks = false;
    for (const Frame& frame : here.frames) {
        if (!frame.inside || insts_[frame.pc].op != I_UNIQUE) context.looked = true;
        checks = true;
        builder.add({frame.pc, frame.below, frame.data, frame.extra, true});
    }
    if (!context.looked) close(context.text.size(), context, builder);
    here.assumed = context.looked || !checks ? -3 : intern_state(builder);
    if (here.assumed == DEAD) here.assumed = -3;
    context.looked = looked;
    return levels_[level]->assumed;
}

int Program::advance(int level, size_t position, Context& context) {
    if (levels_[level]->advanced != -2 && levels_[level]->advanced != -1) return levels_[level]->advanced;
    if (levels_[level]->advanced == -2) return DEAD;
    const bool looked = context.looked;
    context.looked = false;
    Builder builder;
    resume(level, position, context, builder);
    close(position, context, builder);
    const int made = intern_state(builder);
    if (!context.looked) levels_[level]->advanced = made == DEAD ? -2 : made;
    context.looked |= looked;
    return made;
}

int Program::step(int state, uint8_t byte, Context& context) {
    State& from = *states_[state];
    if (from.many) {
        if (from.many[byte] != -2) return from.many[byte];
    } else {
        for (const auto& [b, to] : from.few)
            if (b == byte) return to;
    }
    const bool looked = context.looked;
    context.looked = false;
    Builder builder;
    step_into(state, byte, context, builder, 0);
    const int to = intern_state(builder);
    if (!context.looked) {
        if (!from.many && from.few.size() >= FEW_TRANSITIONS) {
            from.many = std::make_unique<int32_t[]>(256);
            std::fill(from.many.get(), from.many.get() + 256, -2);
            for (const auto& [b, known] : from.few) from.many[b] = known;
            from.few = {};
            transition_bytes_ += 1024;
        }
        if (from.many) from.many[byte] = to;
        else from.few.emplace_back(byte, to);
    }
    context.looked |= looked;
    return to;
}

void Program::step_into(int state, uint8_t byte, Context& context, Builder& out, int depth) {
    const size_t position = context.text.size();
    for (size_t i = 0; i < states_[state]->configs.size(); i++) {
        const Config config = states_[state]->configs[i];
        const Leaf& leaf = *leaves_[config.leaf];
        const int32_t to = leaf.next(config.state, byte);
        if (to != DEAD) {
            if (leaf.closed(to)) {
                resume(config.level, position, context, out);
                close(position, context, out);
            } else {
                out.configs.push_back({config.leaf, to, config.level});
            }
        }
        if (leaf.accepting(config.state) && depth < MAX_NESTED_ENDS) {
            const int after = advance(config.level, position - 1, context);
            if (after != DEAD) step_into(after, byte, context, out, depth + 1);
        }
    }
}

int Program::take_special(int state, int32_t id, Context& context) {
    Builder builder;
    std::vector<int> waiting{state};
    std::unordered_set<int> seen{state};
    const size_t position = context.text.size();
    while (!waiting.empty()) {
        const int at = waiting.back();
        waiting.pop_back();
        for (size_t i = 0; i < states_[at]->configs.size(); i++) {
            const Config config = states_[at]->configs[i];
            const Leaf& leaf = *leaves_[config.leaf];
            if (leaf.kind == Leaf::SPECIAL_IDS) {
                if (std::find(leaf.special.begin(), leaf.special.end(), id) == leaf.special.end()) continue;
                resume(config.level, position, context, builder);
                close(position, context, builder);
            } else if (leaf.accepting(config.state)) {
                const int after = advance(config.level, position, context);
                if (after != DEAD && seen.insert(after).second) waiting.push_back(after);
            }
        }
    }
    return intern_state(builder);
}

bool Program::accepting(int state, Context& context) {
    State& here = *states_[state];
    if (here.accept) return true;
    if (here.accepting >= 0) return here.accepting;
    const bool looked = context.looked;
    context.looked = false;
    bool found = false;
    for (size_t i = 0; i < here.configs.size() && !found; i++) {
        const Config config = here.configs[i];
        if (!leaves_[config.leaf]->accepting(config.state)) continue;
        const int after = advance(config.level, context.text.size(), context);
        found = after != DEAD && after != state && accepting(after, context);
    }
    if (!context.looked) here.accepting = found;
    context.looked |= looked;
    return found;
}

// -2: several bytes may follow, or a special token; -1: none; else the byte.
int Program::find_forced(int state, Context& context, int depth) {
    int found = -1;
    for (size_t i = 0; i < states_[state]->configs.size(); i++) {
        const Config config = states_[state]->configs[i];
        const Leaf& leaf = *leaves_[config.leaf];
        const int own = leaf.single(config.state);
        int also = -1;
        if (leaf.accepting(config.state)) {
            const int after = advance(config.level, context.text.size(), context);
            if (after != DEAD) also = depth < MAX_NESTED_ENDS ? find_forced(after, context, depth + 1) : -2;
        }
        for (const int one : {own, also}) {
            if (one == -1 || one == found) continue;
            if (one == -2 || found != -1) return -2;
            found = one;
        }
    }
    return found;
}

// The byte that must follow, below 0 when there is none.
int Program::forced(int state, Context& context) {
    State& here = *states_[state];
    if (here.forced != -3) return here.forced;
    const bool looked = context.looked;
    context.looked = false;
    const int found = accepting(state, context) ? -2 : find_forced(state, context, 0);
    if (!context.looked) here.forced = static_cast<int16_t>(found);
    context.looked |= looked;
    return found;
}

Forced Program::forced_text(int state, size_t limit, Context& context) {
    State& here = *states_[state];
    if (here.run && here.run->limit == limit) return *here.run;
    const bool looked = context.looked;
    context.looked = false;
    Forced found{limit, {}, {}};
    std::string& text = context.text;
    const size_t before = text.size();
    while (found.text.size() < limit) {
        const int byte = forced(state, context);
        if (context.unknown || byte < 0) break;
        text.push_back(static_cast<char>(byte));
        const int to = step(state, static_cast<uint8_t>(byte), context);
        if (context.unknown || to == DEAD) break;
        found.text.push_back(static_cast<char>(byte));
        state = to;
    }
    text.resize(before);
    text += found.text;
    const size_t length = found.text.size(), reach = vocab->trie.max_depth;
    for (size_t at = length > reach ? length - reach : 0; at < length && !context.unknown; at++)
        if (crosses(state, found.text.substr(at), context)) found.crossings.push_back(static_cast<int32_t>(at));
    text.resize(before);
    here.looked |= context.looked;
    if (!context.looked) {
        transition_bytes_ += sizeof(Forced) + length + 4 * found.crossings.size();
        here.run = std::make_unique<Forced>(found);
    }
    context.looked |= looked;
    return found;
}

int64_t Program::state_key(int state) const {
    const State& here = *states_[state];
    return here.checking || here.looked ? -1 : static_cast<int64_t>(epoch) << 32 | static_cast<uint32_t>(state);
}

// The next byte of a shortest completion; -1 when the text may end here, -2 when there is none.
int Program::toward(int state, Context& context) {
    for (int depth = 0; depth < MAX_NESTED_ENDS; depth++) {
        const State& here = *states_[state];
        if (here.accept) return -1;
        const Config* best = nullptr;
        uint64_t least = UINT64_MAX;
        for (const Config& config : here.configs) {
            const uint64_t cost = leaves_[config.leaf]->distance(config.state) + levels_[config.level]->distance;
            if (cost < least) {
                least = cost;
                best = &config;
            }
        }
        if (!best || leaves_[best->leaf]->kind == Leaf::SPECIAL_IDS) return -2;
        if (!leaves_[best->leaf]->accepting(best->state)) return leaves_[best->leaf]->toward(best->state);
        state = advance(best->level, context.text.size(), context);
        if (state == DEAD) return -2;
    }
    return -2;
}

bool Program::complete(int state, Context& context, std::string& text) {
    const int start = state;
    const size_t before = context.text.size();
    // No text is shorter than the distance says: what is too long is known before a byte of it is written.
    if (const uint64_t least = states_[start]->distance; least > MAX_COMPLETION && least < FAR) return false;
    int byte = -2;
    while (context.text.size() - before < MAX_COMPLETION && (byte = toward(state, context)) >= 0) {
        context.text.push_back(static_cast<char>(byte));
        state = step(state, static_cast<uint8_t>(byte), context);
        byte = -2;
        if (context.unknown || state == DEAD) break;
    }
    text = context.text.substr(before);
    context.text.resize(before);
    if (context.unknown) return false;
    return byte == -1 || search(start, context, text);
}

// The straight way ended at a value that is not right: others are tried, those that promise to end soon first. What is
// found is short, not always the shortest.
bool Program::search(int state, Context& context, std::string& text) {
    struct Place {
        int state;
        int32_t parent;
        uint32_t length;
        uint8_t byte;
    };
    struct Open {
        uint64_t cost;
        uint32_t length;
        int32_t place;
        bool operator<(const Open& other) const {
            return std::tie(other.cost, length, other.place) < std::tie(cost, other.length, place);
        }
    };
    const std::string before = context.text;
    std::vector<Place> places{{state, -1, 0, 0}};
    std::priority_queue<Open> open;
    open.push({states_[state]->distance, 0, 0});
    bool found = false;
    for (int tries = 0; tries < MAX_TRIES && !open.empty() && !found && context.pending.size() < MAX_ASKED; tries++) {
        if (context.tries-- <= 0) break;
        const Place here = places[open.top().place];
        const int32_t index = open.top().place;
        open.pop();
        context.text.resize(before.size() + here.length);
        for (int32_t at = index; places[at].parent >= 0; at = places[at].parent)
            context.text[before.size() + places[at].length - 1] = static_cast<char>(places[at].byte);
        found = accepting(here.state, context);
        for (int byte = 0; byte < 256 && !found; byte++) {
            context.text.push_back(static_cast<char>(byte));
            const int to = step(here.state, static_cast<uint8_t>(byte), context);
            context.text.pop_back();
            if (to == DEAD) continue;
            places.push_back({to, index, here.length + 1, static_cast<uint8_t>(byte)});
            open.push({here.length + 1 + HASTE * states_[to]->distance, here.length + 1, static_cast<int32_t>(places.size()) - 1});
        }
        if (found) text = context.text.substr(before.size());
    }
    context.text = before;
    if (found) {  // what was asked on other ways does not matter
        context.unknown = false;
        context.pending.clear();
    }
    return found;
}

}  // namespace sglite
