#include "attention.h"

#include "vec_plain.h"

#include "attention_kernel.h"

const headrace::AttentionKernel *headrace::plain_attention() { return attention_of("plain"); }
