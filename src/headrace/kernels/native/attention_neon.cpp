#include "attention.h"

#if defined(__aarch64__)

#include "vec_neon.h"

#include "attention_kernel.h"

const headrace::AttentionKernel *headrace::neon_attention() { return attention_of("neon"); }

#else

const headrace::AttentionKernel *headrace::neon_attention() { return nullptr; }

#endif
