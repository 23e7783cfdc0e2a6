// The sets of the r best and of the next e best of n scores, exactly and without a sort.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>
#include "simd.h"

typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint32_t vu_u __attribute__((vector_size(4 * W), aligned(4), may_alias));

constexpr uint32_t ABSENT = 0;  // key of an entry that must not be chosen

static inline long padded(long n) { return (n + W - 1) / W * W; }

class Selector {
 public:
  // Fills best[0..R) and rest[0..E) with indexes in ascending order, then -1. Keys from n to
  // padded(n) must be ABSENT.
  void run(const uint32_t* key, long n, long r, long e, int32_t* best, long R, int32_t* rest,
           long E) {
    n = padded(n);
    long present = at_least(key, n, ABSENT + 1);
    r = std::min({r, R, present});
    e = std::min({e, E, present - r});
    Cut high = cut(key, n, r, UINT32_MAX - 1), low = cut(key, n, r + e, high.key);
    first_.resize(n + W);
    second_.resize(n + W);
    long a = 0, b = 0;
    for (long i = 0; i < n; i += W) {
      vu x = *(const vu_u*)(key + i);
      if (any((x == high.key) | (x == low.key))) one_by_one(key + i, i, high, low, a, b);
      else part(x, i, high, low, a, b);
    }
    std::copy(first_.begin(), first_.begin() + a, best);
    std::fill(best + a, best + R, -1);
    if (!E) return;
    std::copy(second_.begin(), second_.begin() + b, rest);
    std::fill(rest + b, rest + E, -1);
  }

 private:
  struct Cut { uint32_t key; long ties; };  // take keys above `key`, and `ties` equal to it

  static bool any(vi x) {
    int32_t found = 0;
    for (int j = 0; j < W; j++) found |= x[j];
    return found;
  }

  static long at_least(const uint32_t* key, long n, uint32_t edge) {
    vi below{}, more{};  // minus the number of keys
    long i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
      below += *(const vu_u*)(key + i) >= edge;
      more += *(const vu_u*)(key + i + W) >= edge;
    }
    if (i < n) below += *(const vu_u*)(key + i) >= edge;
    below += more;
    long count = 0;
    for (int j = 0; j < W; j++) count -= below[j];
    return count;
  }

  // The cut that lets the `rank` largest keys through, by bisection up to `top`; it ends as soon as
  // a cut lets through just as many.
  Cut cut(const uint32_t* key, long n, long rank, uint32_t top) {
    if (rank == 0) return {UINT32_MAX, 0};
    uint32_t low = ABSENT + 1, high = std::max(top, low);
    high = std::min(high, largest(key, n));
    while (low < high) {
      uint32_t middle = low + (high - low + 1) / 2;
      long count = at_least(key, n, middle);
      if (count == rank) return {middle - 1, 0};
      if (count > rank) low = middle;
      else high = middle - 1;
    }
    return {low, rank - at_least(key, n, low + 1)};
  }

  static uint32_t largest(const uint32_t* key, long n) { return *std::max_element(key, key + n); }

  // a vector of keys none of which equals a cut
  void part(vu x, long i, const Cut& high, const Cut& low, long& a, long& b) {
#if defined(__AVX512F__)
    __m512i keys = (__m512i)x;
    __m512i index = _mm512_add_epi32(_mm512_set1_epi32(i), _mm512_setr_epi32(
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    __mmask16 top = _mm512_cmpgt_epu32_mask(keys, _mm512_set1_epi32(high.key));
    __mmask16 next = _mm512_cmpgt_epu32_mask(keys, _mm512_set1_epi32(low.key)) & ~top;
    _mm512_storeu_si512(first_.data() + a, _mm512_maskz_compress_epi32(top, index));
    _mm512_storeu_si512(second_.data() + b, _mm512_maskz_compress_epi32(next, index));
    a += __builtin_popcount(top);
    b += __builtin_popcount(next);
#else
    for (int j = 0; j < W; j++) {  // without branches
      bool top = x[j] > high.key, next = !top & (x[j] > low.key);
      first_[a] = second_[b] = i + j;
      a += top;
      b += next;
    }
#endif
  }

  void one_by_one(const uint32_t* key, long i, Cut& high, Cut& low, long& a, long& b) {
    for (int j = 0; j < W; j++) {
      uint32_t x = key[j];
      bool top = x > high.key || (x == high.key && high.ties-- > 0);
      bool next = !top && (x > low.key || (x == low.key && low.ties > 0));
      low.ties -= x == low.key && (top || next);
      first_[a] = second_[b] = i + j;
      a += top;
      b += next;
    }
  }

  std::vector<int32_t> first_, second_;
};
