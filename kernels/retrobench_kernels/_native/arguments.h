// Arguments of the functions that take many: the same fields, in the same order, as packed in Python.
#pragma once
#include <cstdint>

struct Select {  // _SELECT in cluster_select/cpu.py
  const void* q;  // bf16 where `dot` says so, else fp32
  const void* centroid;  // or LaneCodes of `bits` bits, if there is `scale_of`
  const void* scale_of;
  const float* mean;
  const int32_t *size, *num_clusters, *retrieved, *estimated, *limit;  // limit: or null
  const void* bias;  // f16, or null
  int32_t *best, *rest;
  float* logit;
  int64_t B, G, group, C, R, E, D;
  int64_t stride[4];  // over row and KV head of: centroids; sizes
  float scale, softcap;
  int32_t dtype, dot, bits, threads;
};

struct Wave {  // _WAVE in wave_attention/cpu.py
  const void* q;  // bf16 where `dot` says so, else fp32; `out` likewise
  const void *k_steady, *v_steady, *k_pool, *v_pool, *k_cache, *v_cache;
  const void* value_sum;  // or codes of the clusters' mean values, if there is `value_scale`
  const void* value_scale;
  const float *value_mean, *total;  // total: sum of all values, if the rest is estimated too
  const int32_t *steady, *first, *size, *retrieved, *estimated;
  const int32_t *apart, *page, *slot;  // apart: clusters that another call attends; page: or null
  const float* logit;
  void* out;
  float* lse;
  int64_t B, G, group, D, R, E, A, C, page_tokens;
  // over row and KV head of: steady k, v; pool k, v; cache k, v; value sums; first; size; page; slot
  int64_t stride[22];
  float scale, softcap;
  int32_t dtype, sum_dtype, bits, dot, splits, threads;
};

extern "C" void retrobench_cluster_select(const Select* select);
extern "C" void retrobench_wave(const Wave* wave);
