// The C interface: vocabularies, programs and matchers behind opaque pointers, for ctypes.
//
// Every function may be called from any thread; a program's lock is held while one of its matchers works. Functions
// that can fail write one line into `error`. PENDING means that checks have to be answered first: read them with
// sg_query, answer all of them with sg_answer, call again.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "machine.hpp"

using namespace sglite;

namespace {

constexpr int PENDING = -1;
constexpr int FAILED = -2;
constexpr size_t MAX_ANSWERS = 50000;
constexpr int MAX_TRIES = 1200;      // of a search for a completion, saved up
constexpr int TRIES_A_TOKEN = 4;
constexpr int MAX_ROUNDS = 4;  // of questions while a completion is looked for

struct VocabHandle {
    std::shared_ptr<Vocabulary> vocab;
    std::shared_ptr<LeafStore> store;
};

struct ProgramHandle {
    std::shared_ptr<Program> program;
};

struct Step {
    int state;
    size_t text;
    int32_t token;
};

struct Matcher {
    std::shared_ptr<Program> program;
    Context context;
    std::vector<Step> steps;  // the first is the start
    int epoch = 0;
    bool ended = false;       // the last step is an end of sequence
    int rounds = 0;           // of questions about values on the way to a completion
    std::string failure;

    int state() const { return steps.back().state; }
};

void tell(char* error, int length, const std::string& reason) {
    if (error && length > 0) std::snprintf(error, length, "%s", reason.c_str());
}

int take(Program& program, int state, int32_t token, Context& context) {
    int to = program.take_special(state, token, context);
    if (to != DEAD) return to;
    to = state;
    for (const char byte : program.vocab->pieces[token]) {
        context.text.push_back(byte);
        to = program.step(to, static_cast<uint8_t>(byte), context);
        if (to == DEAD) return DEAD;
    }
    return program.vocab->pieces[token].empty() ? DEAD : to;
}

// States are numbered anew when the program starts afresh; the tokens lead to them again. False when a check has to be
// answered first.
bool catch_up(Matcher& m) {
    m.context.unknown = false;
    m.context.pending.clear();
    if (m.context.answers.size() > MAX_ANSWERS) m.context.answers.clear();  // they can be asked for again
    if (m.epoch == m.program->epoch) return true;
    const std::vector<Step> old = m.steps;
    m.context.text.clear();
    m.context.forget();
    m.context.committed = 0;
    int state = m.program->start(m.context);
    if (m.context.unknown) return false;
    m.steps = {{state, 0, -1}};
    for (size_t i = 1; i < old.size(); i++) {
        if (!(m.ended && i + 1 == old.size())) state = take(*m.program, state, old[i].token, m.context);
        if (m.context.unknown) {
            m.steps = old;
            return false;
        }
        m.context.committed = m.context.text.size();
        m.steps.push_back({state, m.context.text.size(), old[i].token});
    }
    m.epoch = m.program->epoch;
    return true;
}

template <typename Action>
int guarded(Matcher& m, Action action) {
    std::lock_guard<std::mutex> guard(m.program->lock);
    const size_t before = m.context.text.size();
    try {
        if (!m.failure.empty()) return FAILED;
        if (!catch_up(m)) return PENDING;
        m.context.committed = m.context.text.size();
        return action();
    } catch (const Refusal& refusal) {
        m.failure = refusal.reason;
    } catch (const std::bad_alloc&) {
        m.failure = "out of memory";
    }
    m.context.text.resize(std::min(before, m.context.text.size()));
    return FAILED;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* sg_vocab_new(const char* bytes, const int64_t* offsets, int32_t size, const int32_t* eos, int32_t n_eos,
                   int64_t max_states, int64_t max_work) {
    std::vector<std::string> pieces(size);
    for (int32_t i = 0; i < size; i++) pieces[i].assign(bytes + offsets[i], bytes + offsets[i + 1]);
    auto* handle = new VocabHandle;
    handle->vocab = std::make_shared<Vocabulary>(std::move(pieces), std::vector<int32_t>(eos, eos + n_eos));
    handle->store = std::make_shared<LeafStore>(static_cast<size_t>(max_states), static_cast<size_t>(max_work));
    return handle;
}

void sg_vocab_free(void* handle) { delete static_cast<VocabHandle*>(handle); }

void* sg_program_new(void* handle, const int32_t* stream, int64_t length, int64_t max_states, char* error,
                     int error_length) {
    auto* vocab = static_cast<VocabHandle*>(handle);
    Limits limits;
    limits.max_states = static_cast<size_t>(max_states);
    try {
        Grammar grammar = read_grammar(stream, static_cast<size_t>(length));
        auto program = std::make_shared<Program>(vocab->vocab, vocab->store, std::move(grammar), limits);
        return new ProgramHandle{program};
    } catch (const Refusal& refusal) {
        tell(error, error_length, refusal.reason);
    } catch (const std::bad_alloc&) {
        tell(error, error_length, "out of memory while it was compiled; simplify it");
    }
    return nullptr;
}

void sg_program_free(void* program) { delete static_cast<ProgramHandle*>(program); }

int64_t sg_program_nbytes(void* handle) {
    auto& program = *static_cast<ProgramHandle*>(handle)->program;
    std::lock_guard<std::mutex> guard(program.lock);
    return static_cast<int64_t>(program.nbytes());
}

void* sg_matcher_new(void* handle) {
    auto m = std::make_unique<Matcher>();
    m->program = static_cast<ProgramHandle*>(handle)->program;
    m->epoch = -1;
    m->context.tries = MAX_TRIES;
    m->steps = {{DEAD, 0, -1}};
    return m.release();
}

void* sg_matcher_fork(void* matcher) { return new Matcher(*static_cast<Matcher*>(matcher)); }

void sg_matcher_free(void* matcher) { delete static_cast<Matcher*>(matcher); }

const char* sg_matcher_failure(void* matcher) { return static_cast<Matcher*>(matcher)->failure.c_str(); }

// Whether a regular expression, the only rule of the stream, has no text: 1, 0, or below 0 when that takes too much.
int sg_expr_is_empty(const int32_t* stream, int64_t length, int64_t max_states, int64_t max_work) {
    try {
        const Grammar grammar = read_grammar(stream, static_cast<size_t>(length));
        build_dfa(*grammar.rules[0], false, static_cast<size_t>(max_states), static_cast<size_t>(max_work));
        return 0;
    } catch (const Refusal& refusal) {
        return refusal.empty ? 1 : FAILED;
    } catch (const std::bad_alloc&) {
        return FAILED;
    }
}

// Whether the JSON strings of a regular expression are an automaton within the limits: 1 or 0.
int sg_expr_fits(const int32_t* stream, int64_t length, int64_t max_states, int64_t max_work) {
    try {
        const Grammar grammar = read_grammar(stream, static_cast<size_t>(length));
        build_dfa(*grammar.rules[0], true, static_cast<size_t>(max_states), static_cast<size_t>(max_work));
        return 1;
    } catch (const Refusal& refusal) {
        return refusal.empty;
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

// Overwrites one row. With room >= 0 only tokens after which that many bytes can complete the text.
int sg_matcher_fill(void* matcher, int32_t* mask, int64_t room) {
    auto& m = *static_cast<Matcher*>(matcher);
    return guarded(m, [&] {
        auto* bits = reinterpret_cast<uint32_t*>(mask);
        if (m.ended) {
            std::fill(bits, bits + m.program->vocab->words, 0u);
            for (const int32_t id : m.program->vocab->eos) bits[id >> 5] |= 1u << (id & 31);
            return 1;
        }
        m.program->fill(m.state(), m.context, bits, room);
        return m.context.unknown ? PENDING : 1;
    });
}

int sg_matcher_accept(void* matcher, int32_t token) {
    auto& m = *static_cast<Matcher*>(matcher);
    return guarded(m, [&] {
        Program& program = *m.program;
        if (m.ended || token < 0 || token >= program.vocab->size) return 0;
        if (program.vocab->is_eos(token)) {
            const bool may = program.accepting(m.state(), m.context);
            if (m.context.unknown) return PENDING;
            if (!may) return 0;
            m.ended = true;
            m.steps.push_back({m.state(), m.context.text.size(), token});
            return 1;
        }
        if (program.start_afresh_if_large() && !catch_up(m)) return PENDING;
        const size_t before = m.context.text.size();
        const int to = take(program, m.state(), token, m.context);
        if (m.context.unknown || to == DEAD) {
            m.context.text.resize(before);
            return m.context.unknown ? PENDING : 0;
        }
        m.steps.push_back({to, m.context.text.size(), token});
        m.context.tries = std::min(m.context.tries + TRIES_A_TOKEN, MAX_TRIES);
        return 1;
    });
}

int sg_matcher_rollback(void* matcher, int32_t n) {
    auto& m = *static_cast<Matcher*>(matcher);
    return guarded(m, [&] {
        if (n < 0 || static_cast<size_t>(n) >= m.steps.size()) return 0;
        if (n) {
            m.ended = false;
            m.steps.resize(m.steps.size() - n);
            m.context.text.resize(m.steps.back().text);
            m.context.forget();
        }
        return 1;
    });
}

// Bit 0: the text is a member. Bit 1: an end of sequence was taken.
int sg_matcher_flags(void* matcher) {
    auto& m = *static_cast<Matcher*>(matcher);
    return guarded(m, [&] {
        if (m.ended) return 3;
        const bool may = m.program->accepting(m.state(), m.context);
        return m.context.unknown ? PENDING : static_cast<int>(may);
    });
}

// The bytes that must follow, at most `limit`, and where tokens may run past them. Returns the number of bytes.
int sg_matcher_forced(void* matcher, char* out, int limit, int32_t* crossings, int32_t* n_crossings) {
    auto& m = *static_cast<Matcher*>(matcher);
    *n_crossings = 0;
    return guarded(m, [&] {
        if (m.ended) return 0;
        const Forced found = m.program->forced_text(m.state(), static_cast<size_t>(limit), m.context);
        if (m.context.unknown) return PENDING;
        std::memcpy(out, found.text.data(), found.text.size());
        std::copy(found.crossings.begin(), found.crossings.end(), crossings);
        *n_crossings = static_cast<int32_t>(found.crossings.size());
        return static_cast<int>(found.text.size());
    });
}

// A shortest completion into `out`, as far as it fits. Returns its length, FAILED - 1 when there is none.
int64_t sg_matcher_shortest(void* matcher, char* out, int64_t capacity) {
    auto& m = *static_cast<Matcher*>(matcher);
    int64_t length = 0;
    const int done = guarded(m, [&] {
        std::string text;
        m.context.asking = m.rounds < MAX_ROUNDS;
        const bool found = m.ended || m.program->complete(m.state(), m.context, text);
        m.context.asking = true;
        if (m.context.unknown) {
            m.rounds++;
            return PENDING;
        }
        m.rounds = 0;
        length = static_cast<int64_t>(text.size());
        std::memcpy(out, text.data(), std::min(length, capacity));
        return found ? 1 : 0;
    });
    return done == 1 ? length : done == 0 ? FAILED - 1 : done;
}

// Tokens at the end that may still be taken back.
int sg_matcher_held(void* matcher) {
    auto& m = *static_cast<Matcher*>(matcher);
    return guarded(m, [&] {
        const int64_t from = m.ended ? -1 : m.program->at(m.state()).held_from;
        if (from < 0) return 0;
        int held = 0;
        while (m.steps.size() - held > 1 && m.steps[m.steps.size() - 1 - held].text > static_cast<size_t>(from)) held++;
        return held;
    });
}

// Equal for equal futures within the program, -1 when the text has a say.
int64_t sg_matcher_state_key(void* matcher) {
    auto& m = *static_cast<Matcher*>(matcher);
    int64_t key = -1;
    guarded(m, [&] {
        if (!m.ended) key = m.program->state_key(m.state());
        return 1;
    });
    return key;
}

int32_t sg_matcher_accepted(void* matcher) { return static_cast<int32_t>(static_cast<Matcher*>(matcher)->steps.size()) - 1; }

int64_t sg_matcher_text(void* matcher, const char** text) {
    auto& m = *static_cast<Matcher*>(matcher);
    *text = m.context.text.data();
    return static_cast<int64_t>(m.context.text.size());
}

int32_t sg_queries(void* matcher) { return static_cast<int32_t>(static_cast<Matcher*>(matcher)->context.pending.size()); }

int32_t sg_query(void* matcher, int32_t index, const char** text, int64_t* length) {
    const auto& [check, value] = static_cast<Matcher*>(matcher)->context.pending[index];
    *text = value.data();
    *length = static_cast<int64_t>(value.size());
    return check;
}

void sg_answer(void* matcher, int32_t index, int32_t holds) {
    auto& context = static_cast<Matcher*>(matcher)->context;
    const auto& [check, value] = context.pending[index];
    context.answers[std::to_string(check) + ':' + value] = holds != 0;
}

}  // extern "C"
#pragma GCC visibility pop
