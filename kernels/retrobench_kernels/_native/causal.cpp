// Causal attention of a chunk of the prompt in bf16, tile by tile: scores of some queries with a
// block of keys, weights, weighted values. Both products are bf16 dot products where the CPU has
// them. Keys and values of a KV head are packed once, so that all of its tiles read them in order.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>
#include "simd.h"

#if defined(__AVX512BF16__)
#define HAS_DOT 1
#else
#define HAS_DOT 0
#endif
#if defined(__AMX_BF16__)
#define HAS_AMX 1  // torch's own attention uses it
#else
#define HAS_AMX 0
#endif

namespace {

constexpr int ROWS = W == 16 ? 6 : 1;  // queries of a tile: its 24 sums stay in registers
constexpr int COLS = 64;               // keys, or dims, of a product
constexpr int KEYS = 256;              // keys that a tile scores before it adds their values
constexpr int QUERIES = 96;            // queries that share a block of keys in the cache
constexpr float LOWEST = -1e30f;       // "no key yet"
constexpr float LOG2_E = 1.44269504f;

struct Sizes {
  long T, S, D, window;
  float scale;
};

inline int32_t pair(const uint16_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return x;
}

// sum + x.y of pairs of bf16
inline vf dot(vf sum, vi x, vi y) {
#if HAS_DOT
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
  constexpr int32_t HIGH = 0xffff0000;
  return sum + (vf)(x << 16) * (vf)(y << 16) + (vf)(x & HIGH) * (vf)(y & HIGH);
#endif
}

inline void store_bf16(uint16_t* p, vf x) {
#if HAS_DOT
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  vi bits = (vi)x;
  bits += 0x7fff + ((bits >> 16) & 1);
  for (int i = 0; i < W; i++) p[i] = bits[i] >> 16;
#endif
}

// 2^x for x <= 0, exact enough for weights that become bf16; 0 below 2^-126; NaN stays NaN
inline vf power(vf x) {
  vi tiny = x < -126.f;
  x = tiny ? splat(-126.f) : x;
  vf n = (x + 12582912.f) - 12582912.f, f = x - n;  // round to nearest
  vf p = splat(9.5745e-3f);
  p = p * f + 5.5918e-2f;
  p = p * f + 2.402304e-1f;
  p = p * f + 6.931303e-1f;
  p = p * f + 1.f;
  return (vf)(((vi)p + (__builtin_convertvector(n, vi) << 23)) & ~tiny);
}

// sum[row][V vectors] += a[row][pair] . b[pair][column] over n pairs
template <int V>
inline void product(const uint16_t* const a[ROWS], const uint32_t* b, long step, long n,
                    vf sum[ROWS][V]) {
  for (long i = 0; i < n; i++) {
    vi column[V];
    for (int c = 0; c < V; c++) column[c] = *(const vi_u*)(b + i * step + W * c);
    for (int r = 0; r < ROWS; r++) {
      vi x = vi{} + pair(a[r] + 2 * i);
      for (int c = 0; c < V; c++) sum[r][c] = dot(sum[r][c], x, column[c]);
    }
  }
}

// COLS tokens from `first` on: keys as [D / 2][COLS], values as [COLS / 2][D], each a pair of bf16
// that a dot product sums. Tokens from S on are 0.
void pack(const uint16_t* k, const uint16_t* v, long first, const Sizes& z, uint32_t* keys,
          uint32_t* values) {
  long pairs = z.D / 2;
  for (long s = 0; s < COLS; s++) {
    const uint16_t* from = k + (first + s) * z.D;
    for (long i = 0; i < pairs; i++) keys[i * COLS + s] = first + s < z.S ? pair(from + 2 * i) : 0;
  }
  for (long s = 0; s < COLS; s += 2)
    for (long d = 0; d < z.D; d++) {
      const uint16_t* from = v + (first + s) * z.D + d;
      uint32_t low = first + s < z.S ? from[0] : 0, high = first + s + 1 < z.S ? from[z.D] : 0;
      values[s / 2 * z.D + d] = low | high << 16;
    }
}

struct State {  // of a block of queries: weighted values, largest score, sum of weights
  std::vector<float> out;
  float top[QUERIES], sum[QUERIES];
};

// out = decay * out + weights . values, V vectors of each row
template <int V>
inline void add_values(const uint16_t* const weight[ROWS], const uint32_t* v, long D, long pairs,
                       const float* decay, float* out) {
  vf sum[ROWS][V];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < V; c++) sum[r][c] = load(out + r * D + W * c) * decay[r];
  product<V>(weight, v, D, pairs, sum);
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < V; c++) store(out + r * D + W * c, sum[r][c]);
}

// Scores in, bf16 weights out, of the keys [low, high) of n; returns what earlier sums shrink by.
float weigh(float* score, long low, long high, int n, float scale, uint16_t* weight, float& top,
            float& sum) {
  low = std::min<long>(std::max(low, 0L), n), high = std::min<long>(std::max(high, low), n);
  std::fill(score, score + low, -INFINITY);
  std::fill(score + high, score + n, -INFINITY);
  vf max_score = splat(LOWEST), total = {};
  for (int j = 0; j < n; j += W) max_score = vmax(max_score, load(score + j));
  float highest = max_score[0];
  for (int j = 1; j < W; j++) highest = std::max(highest, max_score[j]);
  float before = top;
  top = std::max(top, highest * scale);
  for (int j = 0; j < n; j += W) {
    vf p = power(load(score + j) * scale - top);
    total += p;
    store_bf16(weight + j, p);
  }
  float decay = std::exp2(before - top), added = 0;
  for (int j = 0; j < W; j++) added += total[j];
  sum = sum * decay + added;
  return decay;
}

// A tile of queries, the first of which is the token `position`, over keys [from, to)
void attend(const uint16_t* const q[ROWS], const uint32_t* k, const uint32_t* v, long from, long to,
            long position, const Sizes& z, State& state, long row) {
  alignas(64) float score[ROWS][KEYS];
  alignas(64) uint16_t weight[ROWS][KEYS];
  const uint16_t* weights[ROWS];
  float decay[ROWS];
  int n = (int)((to - from + COLS - 1) / COLS * COLS);
  for (int j = 0; j < n; j += COLS) {
    vf sum[ROWS][COLS / W] = {};
    product<COLS / W>(q, k + (from + j) * (z.D / 2), COLS, z.D / 2, sum);
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < COLS / W; c++) store(&score[r][j + W * c], sum[r][c]);
  }
  for (int r = 0; r < ROWS; r++) {
    long high = position + r + 1 - from;
    decay[r] = weigh(score[r], high - z.window, high, n, z.scale * LOG2_E, weight[r],
                     state.top[row + r], state.sum[row + r]);
    weights[r] = weight[r];
  }
  const uint32_t* values = v + from / 2 * z.D;
  float* out = state.out.data() + row * z.D;
  long d = 0;
  for (; d + COLS <= z.D; d += COLS)
    add_values<COLS / W>(weights, values + d, z.D, n / 2, decay, out + d);
  for (; d < z.D; d += COLS / 2)
    add_values<COLS / 2 / W>(weights, values + d, z.D, n / 2, decay, out + d);
}

// Queries [first, first + QUERIES) of one head; steps: between tokens of q and of the output
void attend_block(const uint16_t* q, long q_step, const uint32_t* k, const uint32_t* v, long first,
                  const Sizes& z, State& state, uint16_t* to, long to_step) {
  long count = std::min<long>(QUERIES, z.T - first), position = z.S - z.T + first;
  state.out.assign(QUERIES * z.D, 0.f);
  std::fill(state.top, state.top + QUERIES, LOWEST);
  std::fill(state.sum, state.sum + QUERIES, 0.f);
  for (long from = std::max(0L, position + 1 - z.window) / KEYS * KEYS; from < position + count;
       from += KEYS)
    for (long row = 0; row < count; row += ROWS) {
      long end = std::min({from + KEYS, position + row + ROWS, z.S});
      if (end <= from || from + KEYS <= position + row + 1 - z.window) continue;
      const uint16_t* tile[ROWS];  // rows beyond the last repeat it
      for (int r = 0; r < ROWS; r++) tile[r] = q + std::min(first + row + r, z.T - 1) * q_step;
      attend(tile, k, v, from, end, position + row, z, state, row);
    }
  for (long r = 0; r < count; r++)
    for (long d = 0; d < z.D; d++)
      to[(first + r) * to_step + d] = narrow(state.out[r * z.D + d] / state.sum[r]).bits;
}

}  // namespace

// Whether this is the fastest form here.
extern "C" const int32_t retrobench_causal_pays = HAS_DOT && !HAS_AMX;

// stride: rows and heads of q, k, v and the output, then tokens of q and of the output
extern "C" void retrobench_causal(const uint16_t* q, const uint16_t* k, const uint16_t* v,
                                  uint16_t* out, int64_t B, int64_t G, int64_t N, int64_t T,
                                  int64_t S, int64_t D, int64_t window, const int64_t* stride,
                                  float scale, int32_t threads) {
  Sizes z{T, S, D, window, scale};
  long padded = (S + KEYS - 1) / KEYS * KEYS, blocks = (T + QUERIES - 1) / QUERIES;
  std::vector<uint32_t> keys(padded * D / 2), values(padded * D / 2);
#pragma omp parallel num_threads(threads)
  {
    State state;
    for (long i = 0; i < B * G; i++) {
      long b = i / G, g = i % G;
#pragma omp for schedule(static)
      for (long s = 0; s < padded; s += COLS)
        pack(k + b * stride[2] + g * stride[3], v + b * stride[4] + g * stride[5], s, z,
             keys.data() + s * D / 2, values.data() + s * D / 2);
#pragma omp for schedule(dynamic, 1)
      for (long task = 0; task < N * blocks; task++) {  // the longest ones first
        long h = g * N + task % N, first = (blocks - 1 - task / N) * QUERIES;
        attend_block(q + b * stride[0] + h * stride[1], stride[8], keys.data(), values.data(),
                     first, z, state, out + b * stride[6] + h * stride[7], stride[9]);
      }
    }
  }
}
