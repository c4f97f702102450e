#include "attention.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "vec_avx2.h"

#include "attention_kernel.h"

const headrace::AttentionKernel *headrace::avx2_attention() { return attention_of("avx2"); }

#else

const headrace::AttentionKernel *headrace::avx2_attention() { return nullptr; }

#endif
