"""Everything that a job imports late, imported at once: a process forked from here is quick."""

import jinja2
import tokenizers
import transformers.tokenization_utils_fast

from tools.soak import rig

LOADED = (jinja2, tokenizers, transformers.tokenization_utils_fast, rig)
