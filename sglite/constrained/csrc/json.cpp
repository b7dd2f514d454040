#include "json.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "ir.hpp"

namespace sglite {
namespace {

constexpr int MAX_DEPTH = 512;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

class Canon {
public:
    Canon(const char* begin, const char* end) : at_(begin), end_(end) {}

    bool whole(std::string& out) {
        return value(out, 0) && (space(), at_ == end_);
    }

private:
    void space() {
        while (at_ != end_ && is_space(*at_)) at_++;
    }

    bool value(std::string& out, int depth) {
        space();
        if (at_ == end_ || depth > MAX_DEPTH) return false;
        if (*at_ == '"') return string(out);
        if (*at_ == '[') return array(out, depth);
        if (*at_ == '{') return object(out, depth);
        if (*at_ == '-' || (*at_ >= '0' && *at_ <= '9')) return number(out);
        const char* from = at_;
        while (at_ != end_ && *at_ >= 'a' && *at_ <= 'z') at_++;
        out.append(from, at_);
        return at_ != from;
    }

    bool hex(uint32_t& code) {
        if (end_ - at_ < 4) return false;
        code = 0;
        for (int i = 0; i < 4; i++, at_++) {
            const char c = *at_;
            code *= 16;
            if (c >= '0' && c <= '9') code += c - '0';
            else if (c >= 'a' && c <= 'f') code += c - 'a' + 10;
            else if (c >= 'A' && c <= 'F') code += c - 'A' + 10;
            else return false;
        }
        return true;
    }

    bool escape(std::string& out) {
        static const std::string names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
        if (at_ == end_) return false;
        const char c = *at_++;
        if (c != 'u') {
            const size_t i = names.find(c);
            if (i == std::string::npos) return false;
            out += values[i];
            return true;
        }
        uint32_t code;
        if (!hex(code)) return false;
        if (code >= 0xD800 && code < 0xDC00 && end_ - at_ >= 6 && at_[0] == '\\' && at_[1] == 'u') {
            at_ += 2;
            uint32_t second;
            if (!hex(second)) return false;
            code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
        }
        put_utf8(out, code);
        return true;
    }

    // Strings carry their length, so that no content looks like structure.
    bool string(std::string& out) {
        std::string text;
        at_++;
        while (at_ != end_ && *at_ != '"') {
            if (*at_ == '\\') {
                at_++;
                if (!escape(text)) return false;
            } else {
                text += *at_++;
            }
        }
        if (at_ == end_) return false;
        at_++;
        out += '"' + std::to_string(text.size()) + ':' + text;
        return true;
    }

    // Digits without zeros at either end, and the power of ten of the last one.
    bool number(std::string& out) {
        const bool negative = *at_ == '-';
        if (negative) at_++;
        std::string digits;
        long long exponent = 0;
        bool fraction = false;
        for (; at_ != end_ && ((*at_ >= '0' && *at_ <= '9') || (*at_ == '.' && !fraction)); at_++) {
            if (*at_ == '.') fraction = true;
            else {
                digits += *at_;
                exponent -= fraction;
            }
        }
        if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
            at_++;
            bool minus = false;
            if (at_ != end_ && (*at_ == '+' || *at_ == '-')) minus = *at_++ == '-';
            long long written = 0;
            for (; at_ != end_ && *at_ >= '0' && *at_ <= '9'; at_++) written = std::min(written * 10 + (*at_ - '0'), 1LL << 40);
            exponent += minus ? -written : written;
        }
        if (digits.empty()) return false;
        while (!digits.empty() && digits.back() == '0') {
            digits.pop_back();
            exponent++;
        }
        digits.erase(0, digits.find_first_not_of('0') == std::string::npos ? digits.size() : digits.find_first_not_of('0'));
        if (digits.empty()) out += '0';
        else out += (negative ? "-" : "") + digits + 'e' + std::to_string(exponent);
        return true;
    }

    bool array(std::string& out, int depth) {
        at_++;
        out += '[';
        space();
        if (at_ != end_ && *at_ == ']') return at_++, out += ']', true;
        for (;;) {
            if (!value(out, depth + 1)) return false;
            space();
            if (at_ == end_) return false;
            const char c = *at_++;
            out += c;
            if (c == ']') return true;
            if (c != ',') return false;
        }
    }

    bool object(std::string& out, int depth) {
        at_++;
        std::vector<std::pair<std::string, std::string>> members;
        space();
        if (at_ != end_ && *at_ == '}') return at_++, out += "{}", true;
        for (;;) {
            members.emplace_back();
            space();
            if (at_ == end_ || *at_ != '"' || !string(members.back().first)) return false;
            space();
            if (at_ == end_ || *at_++ != ':' || !value(members.back().second, depth + 1)) return false;
            space();
            if (at_ == end_) return false;
            const char c = *at_++;
            if (c == '}') break;
            if (c != ',') return false;
        }
        std::sort(members.begin(), members.end());
        out += '{';
        for (const auto& [name, value] : members) out += name + ':' + value + ',';
        out += '}';
        return true;
    }

    const char* at_;
    const char* end_;
};

}  // namespace

std::string canonical(const char* begin, const char* end) {
    std::string out;
    if (Canon(begin, end).whole(out)) return out;
    return '!' + std::string(begin, end);
}

std::unordered_set<std::string> completed_entries(const char* begin, const char* end) {
    std::unordered_set<std::string> found;
    while (begin != end && is_space(*begin)) begin++;
    if (begin == end) return found;
    const bool object = *begin == '{';
    const char* at = begin + 1;
    const char* entry = nullptr;
    int depth = 0;
    bool value = false;  // behind the colon of an object
    const auto complete = [&](const char* until) {
        if (entry && !value) found.insert(canonical(entry, until));
        entry = nullptr;
    };
    while (at != end) {
        const char c = *at;
        if (depth == 0 && c == ',') {
            complete(at);
            value = false;
        } else if (depth == 0 && object && c == ':') {
            complete(at);
            value = true;
        } else if (depth == 0 && (c == ']' || c == '}')) {
            complete(at);
            return found;
        } else if (!is_space(c)) {
            if (!entry) entry = at;
            if (c == '[' || c == '{') depth++;
            if (c == ']' || c == '}') depth--;
            if (c == '"') {
                for (at++; at != end && *at != '"'; at++)
                    if (*at == '\\' && at + 1 != end) at++;
                if (at == end) return found;
            }
        }
        at++;
    }
    return found;
}

void Containers::read(const std::string& text, size_t until) {
    for (; at_ < until; at_++) {
        const char c = text[at_];
        if (string_) {
            if (escape_) escape_ = false;
            else if (c == '\\') escape_ = true;
            else if (c == '"') string_ = false;
        } else if (c == '"') {
            string_ = true;
        } else if (c == '[' || c == '{') {
            open_.push_back(at_);
        } else if ((c == ']' || c == '}') && !open_.empty()) {
            open_.pop_back();
        }
    }
}

}  // namespace sglite
