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

// Best first; amx_fast only when asked for.
const Family families[] = {
    {"amx_fast", amx_fast_engine, [] { return amx_allowed(); }},
    {"amx", amx_engine, [] { return amx_allowed(); }},
    {"avx512", avx512_engine, [] { return features().avx512f && features().avx512bw; }},
    {"avx2", avx2_engine,
     [] { return features().avx2 && features().fma && features().f16c; }},
    {"neon", neon_engine, [] { return features().neon; }},
    {"plain", plain_engine, [] { return true; }},
};

}  // namespace

const Engine &choose_engine(Format format, const char *path) {
    const std::string wanted = path;
    bool from_here = false;
    for (const Family &family : families) {
        from_here = from_here || wanted == family.name ||
                    (wanted == "auto" && family.engine != amx_fast_engine);
        if (!from_here || !family.usable()) continue;
        if (const Engine *engine = family.engine(format)) return *engine;
    }
    throw std::invalid_argument("path: expected auto, or a path this processor has, got " + wanted);
}

}  // namespace headrace
