// The sets of the r best and of the next e best of n scores, exactly and without a sort.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>
#include "simd.h"

constexpr uint32_t ABSENT = 0;  // key of an entry that must not be chosen

// Scores >= 0 to keys in the same order, all above ABSENT.
static inline uint32_t key_of(float score) {
  uint32_t bits;
  memcpy(&bits, &score, 4);
  return bits + 1;
}

class Selector {
 public:
  // Fills best[0..R) and rest[0..E) with indexes in ascending order, then -1.
  void run(const uint32_t* key, long n, long r, long e, int32_t* best, long R, int32_t* rest,
           long E) {
    std::vector<uint32_t>(BINS, 0).swap(bins_);
    for (long i = 0; i < n; i++) bins_[key[i] >> SHIFT]++;
    long present = n - std::count(key, key + n, ABSENT);
    r = std::min({r, R, present});
    e = std::min({e, E, present - r});
    Cut high = cut(key, n, r), low = cut(key, n, r + e);
    first_.resize(n + 1);
    second_.resize(n + 1);
    long a = 0, b = 0;
    for (long i = 0; i < n; i++) {  // without branches, except at the two cuts themselves
      uint32_t x = key[i];
      bool top = x > high.key, next = !top & (x > low.key);
      if (__builtin_expect((x == high.key) | (x == low.key), 0)) {
        top = x > high.key || (x == high.key && high.ties-- > 0);
        next = !top && (x > low.key || (x == low.key && low.ties > 0));
        low.ties -= x == low.key && (top || next);
      }
      first_[a] = second_[b] = i;
      a += top;
      b += next;
    }
    std::copy(first_.begin(), first_.begin() + a, best);
    std::fill(best + a, best + R, -1);
    if (!E) return;
    std::copy(second_.begin(), second_.begin() + b, rest);
    std::fill(rest + b, rest + E, -1);
  }

 private:
  static constexpr int SHIFT = 20, BINS = 1 << 12;
  struct Cut { uint32_t key; long ties; };  // take keys above `key`, and `ties` equal to it

  // the cut that lets the `rank` largest keys through
  Cut cut(const uint32_t* key, long n, long rank) {
    if (rank == 0) return {UINT32_MAX, 0};
    long above = 0, bin = BINS - 1;
    while (above + bins_[bin] < rank) above += bins_[bin--];
    inside_.clear();
    for (long i = 0; i < n; i++)
      if (long(key[i] >> SHIFT) == bin) inside_.push_back(key[i]);
    long want = rank - above;
    std::nth_element(inside_.begin(), inside_.begin() + want - 1, inside_.end(),
                     std::greater<uint32_t>());
    uint32_t edge = inside_[want - 1];
    long over = 0;
    for (uint32_t x : inside_) over += x > edge;
    return {edge, want - over};
  }
  std::vector<uint32_t> bins_, inside_;
  std::vector<int32_t> first_, second_;
};
