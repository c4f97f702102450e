// Memory as Python hands it over: a number, whose type the wrapper has checked.
#pragma once

#include <cstdint>

namespace headrace {

using Address = std::uintptr_t;

template <class T>
T *at(Address address) {
    return reinterpret_cast<T *>(address);
}

}  // namespace headrace
