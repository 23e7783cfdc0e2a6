// RetroInfer's step of one layer in one call: add the new token, choose clusters, attend.
#include <cstring>
#include <vector>
#include "arguments.h"

namespace {

// Adds one vector per row and KV head to the first `count` ones of a zone.
void append(const void* zone, const int64_t* stride, const void* row, const Wave& w) {
  size_t size = w.dtype == 0 ? 4 : 2;
  for (long b = 0; b < w.B; b++)
    for (long g = 0; g < w.G; g++) {
      long place = b * stride[0] + g * stride[1] + w.steady[b] * w.D;
      memcpy((char*)zone + place * size, (const char*)row + (b * w.G + g) * w.D * size, w.D * size);
    }
}

template <class T> T* room(std::vector<T>& held, long n) {
  if ((long)held.size() < n) held.resize(n);
  return held.data();
}

}  // namespace

// k and v are [B][G][D]. The lists and logits may be null: then nobody wants to see them.
extern "C" void retrobench_cluster_step(const Select* given, const Wave* attended, const void* q,
                                        const void* k, const void* v, void* out, int32_t* best,
                                        int32_t* rest, float* logit) {
  thread_local std::vector<int32_t> lists;
  thread_local std::vector<float> logits, lse;
  Select s = *given;
  Wave w = *attended;
  append(w.k_steady, w.stride, k, w);
  append(w.v_steady, w.stride + 2, v, w);
  for (long b = 0; b < w.B; b++) ((int32_t*)w.steady)[b]++;
  s.q = w.q = q;
  w.out = out;
  w.lse = room(lse, w.B * w.G * w.group);
  s.best = best ? best : room(lists, w.B * w.G * (s.R + s.E));
  s.rest = rest ? rest : s.best + w.B * w.G * s.R;
  s.logit = logit ? logit : room(logits, w.B * w.G * w.group * s.C);
  w.retrieved = s.best;
  w.estimated = s.rest;
  w.logit = s.logit;
  retrobench_cluster_select(&s);
  retrobench_wave(&w);
}
