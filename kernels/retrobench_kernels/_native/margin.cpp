// InfiniGen's speculation: logits from a few channels, as gaps to each query head's largest one.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr long TILE = 512;  // tokens at a time: sums of all heads stay in the first-level cache
constexpr long AT_ONCE = 4;  // query heads that share one read of the keys
constexpr float NONE = -std::numeric_limits<float>::infinity();

void widen(const float* from, long n, float* to) { std::copy(from, from + n, to); }

void widen(const uint16_t* from, long n, float* to) {  // bfloat16
  for (long i = 0; i < n; i++) {
    uint32_t bits = uint32_t(from[i]) << 16;
    memcpy(to + i, &bits, sizeof bits);
  }
}

float largest(const float* x, long n) {
  constexpr int LANES = 16;
  float lane[LANES];
  std::fill(lane, lane + LANES, NONE);
  long whole = n / LANES * LANES;
  for (long i = 0; i < whole; i += LANES)
    for (int j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
  float top = *std::max_element(lane, lane + LANES);
  for (long i = whole; i < n; i++) top = std::max(top, x[i]);
  return top;
}

// logit[h][S] of up to AT_ONCE heads, and each one's largest; keys are channel by channel
template <class T>
void logits(const float* q, long heads, const T* key, long channel_stride, const uint8_t* exists,
            long S, long C, float* logit, float* top) {
  alignas(64) float sum[AT_ONCE][TILE], row[4][TILE];
  for (long from = 0; from < S; from += TILE) {
    long n = std::min(TILE, S - from);
    std::fill(sum[0], sum[0] + AT_ONCE * TILE, 0.f);
    long c = 0;
    for (; c + 4 <= C; c += 4) {  // four channels for each load and store of a sum
      for (int j = 0; j < 4; j++) widen(key + (c + j) * channel_stride + from, n, row[j]);
      for (long h = 0; h < heads; h++) {
        const float* w = q + h * C + c;
        float w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], *out = sum[h];
        for (long i = 0; i < n; i++)
          out[i] += w0 * row[0][i] + w1 * row[1][i] + (w2 * row[2][i] + w3 * row[3][i]);
      }
    }
    for (; c < C; c++) {
      widen(key + c * channel_stride + from, n, row[0]);
      for (long h = 0; h < heads; h++)
        for (long i = 0; i < n; i++) sum[h][i] += q[h * C + c] * row[0][i];
    }
    for (long h = 0; h < heads; h++) {
      float* out = logit + h * S + from;
      for (long i = 0; i < n; i++) out[i] = exists[from + i] ? sum[h][i] : NONE;
      top[h] = std::max(top[h], largest(out, n));
    }
  }
}

template <class T>
void gaps(const float* q, const T* key, const uint8_t* exists, float* score, long B, long G, long N,
          long S, long C, const int64_t* stride, bool per_head, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> logit(AT_ONCE * S);
#pragma omp for schedule(dynamic, 1)
    for (long i = 0; i < B * G; i++) {
      long b = i / G, g = i % G;
      const T* own = key + b * stride[0] + g * stride[1];
      const uint8_t* real = exists + b * stride[3] + g * stride[4];
      for (long first = 0; first < N; first += AT_ONCE) {
        long heads = std::min(AT_ONCE, N - first);
        float top[AT_ONCE];
        std::fill(top, top + AT_ONCE, std::numeric_limits<float>::lowest());
        logits(q + (i * N + first) * C, heads, own, stride[2], real, S, C, logit.data(), top);
        for (long h = 0; h < heads; h++) {
          const float* x = logit.data() + h * S;
          float* out = score + (per_head ? i * N + first + h : i) * S;
          if (per_head || first + h == 0)
            for (long t = 0; t < S; t++) out[t] = x[t] - top[h];
          else
            for (long t = 0; t < S; t++) out[t] = std::max(out[t], x[t] - top[h]);
        }
      }
    }
  }
}

}  // namespace

extern "C" void retrobench_logit_margin(const float* q, const void* key, const uint8_t* exists,
                                      float* score, int64_t B, int64_t G, int64_t N, int64_t S,
                                      int64_t C, const int64_t* stride, int32_t per_head,
                                      int32_t dtype, int32_t threads) {
  if (dtype == 0)
    gaps(q, (const float*)key, exists, score, B, G, N, S, C, stride, per_head != 0, threads);
  else
    gaps(q, (const uint16_t*)key, exists, score, B, G, N, S, C, stride, per_head != 0, threads);
}
