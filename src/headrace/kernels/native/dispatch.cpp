#include <stdexcept>
#include <string>

#include "engine.h"
#include "features.h"

namespace headrace {
namespace {

struct Family {
    const char *name;
    const Engine *(*engine)(Format);
    bool (*usable)();
};

bool has_avx2() { return features().avx2 && features().fma && features().f16c; }

bool has_avx512() { return features().avx512f && features().avx512bw && has_avx2(); }

// Best first.
const Family families[] = {
    {"amx", amx_engine, amx_allowed},
    {"avx512", avx512_engine, has_avx512},
    {"avx512_vnni", avx512_vnni_engine,
     [] { return has_avx512() && features().avx512_vnni; }},
    {"avx_vnni", avx_vnni_engine, [] { return has_avx2() && features().avx_vnni; }},
    {"avx2", avx2_engine, has_avx2},
    {"neon", neon_engine, [] { return features().neon; }},
    {"plain", plain_engine, [] { return true; }},
};
const Family fast[] = {{"amx_fast", amx_fast_engine, amx_allowed}};
const Family exact[] = {
    {"exact_avx512", avx512_exact_engine, has_avx512},
    {"exact_avx2", avx2_exact_engine, has_avx2},
    {"exact_plain", plain_exact_engine, [] { return true; }},
};
const Family bf16[] = {
    {"amx_bf16", amx_bf16_engine, amx_allowed},
    {"avx512_bf16", avx512_bf16_engine,
     [] { return has_avx512() && features().avx512_bf16; }},
    {"rounded_avx512", avx512_rounded_engine, has_avx512},
    {"rounded_avx2", avx2_rounded_engine, has_avx2},
    {"rounded_neon", neon_rounded_engine, [] { return features().neon; }},
    {"rounded_plain", plain_rounded_engine, [] { return true; }},
};

// The first usable engine of a list, from the family of that name on; any name when empty.
template <int N>
const Engine *find(const Family (&list)[N], Format format, const std::string &name) {
    bool from_here = name.empty();
    for (const Family &family : list) {
        from_here = from_here || name == family.name;
        if (!from_here || !family.usable()) continue;
        if (const Engine *engine = family.engine(format)) return engine;
    }
    return nullptr;
}

}  // namespace

const Engine &choose_engine(Format format, const char *path) {
    const std::string wanted = path;
    const bool named =
        wanted != "auto" && wanted != "fast" && wanted != "exact" && wanted != "bf16";
    const std::string name = named ? wanted : "";
    const Engine *found = nullptr;
    if (named || wanted == "fast") found = find(fast, format, name);
    if (!found && (named || wanted == "exact")) found = find(exact, format, name);
    if (!found && (named || wanted == "bf16")) found = find(bf16, format, name);
    if (!found) found = find(families, format, name);
    if (!found) {
        throw std::invalid_argument("path: expected auto, fast, exact, bf16, or a path that this "
                                    "processor has, got " + wanted);
    }
    return *found;
}

}  // namespace headrace
