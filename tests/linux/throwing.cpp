// Exceptions through many frames, what is destroyed on the way, casts, and statics.
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

struct Loud {
    std::string name;
    explicit Loud(std::string given) : name(std::move(given)) { std::printf("+%s ", name.c_str()); }
    ~Loud() { std::printf("-%s ", name.c_str()); }
};

static Loud global("global");
static thread_local Loud of_the_thread("thread");

struct Base {
    virtual ~Base() = default;
    virtual int number() const { return 1; }
};
struct Left : virtual Base {
    int number() const override { return 2; }
};
struct Right : virtual Base {};
struct Both : Left, Right {};

struct Special : std::runtime_error {
    int code;
    Special(const char *what, int given) : std::runtime_error(what), code(given) {}
};

static void deep(int depth)
{
    Loud here("d" + std::to_string(depth));
    if (depth == 5)
        throw Special("from below", 55);
    deep(depth + 1);
}

static void rethrow()
{
    try {
        deep(3);
    } catch (const std::exception &) {
        std::throw_with_nested(std::logic_error("and around it"));
    }
}

static int once()
{
    static Loud made("once");
    return 1;
}

int main(int argc, char **)
{
    if (argc > 1)
        throw Special("nobody catches it", argc);
    std::puts(of_the_thread.name.c_str());
    try {
        deep(0);
    } catch (const Special &error) {
        std::printf("\ncaught %s %d\n", error.what(), error.code);
    }
    try {
        rethrow();
    } catch (const std::exception &outer) {
        try {
            std::rethrow_if_nested(outer);
        } catch (const std::runtime_error &inner) {
            std::printf("\n%s: %s\n", outer.what(), inner.what());
        }
    }
    std::exception_ptr kept;
    try {
        throw 42;
    } catch (...) {
        kept = std::current_exception();
    }
    try {
        std::rethrow_exception(kept);
    } catch (int value) {
        std::printf("int %d\n", value);
    }
    try {
        std::vector<int>().at(3);
    } catch (const std::out_of_range &) {
        std::puts("out of range");
    }
    try {
        volatile std::size_t much = static_cast<std::size_t>(-1) / 4;
        std::unique_ptr<char[]> block(new char[much]);
    } catch (const std::bad_alloc &) {
        std::puts("bad alloc");
    }
    Both both;
    Base *base = &both;
    std::printf("%d %d %d\n", base->number(), dynamic_cast<Right *>(base) != nullptr, typeid(*base) == typeid(Both));
    try {
        Base plain;
        (void)dynamic_cast<Left &>(plain);
    } catch (const std::bad_cast &) {
        std::puts("bad cast");
    }
    int total = 0;
    for (int i = 0; i < 20000; i++) {
        try {
            if (i % 2)
                throw i;
        } catch (int value) {
            total += value;
        }
    }
    std::printf("%d\n", total);
    std::function<int(int)> twice = [total](int x) { return 2 * x + total % 10; };
    std::printf("%d %d %d\n", twice(21), once(), once());
    return 5;
}
