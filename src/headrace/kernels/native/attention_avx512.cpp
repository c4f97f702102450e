#include "attention.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "vec_avx512.h"

#include "attention_kernel.h"

const headrace::AttentionKernel *headrace::avx512_attention() { return attention_of("avx512"); }

#else

const headrace::AttentionKernel *headrace::avx512_attention() { return nullptr; }

#endif
