/* The peer: a plain C port of the published Cython Soft-NMS (Bodla et al., cpu_nms.pyx), one class
 * at a time, swap and scan. EXACT_EXP takes exp in double and rounds once, as the Cython does;
 * without it expf, which is faster and may differ in the last bit. */
#include <math.h>

#ifdef EXACT_EXP
#define WEIGHT(x) ((float)exp((double)(x)))
#else
#define WEIGHT(x) expf(x)
#endif

enum { X1, Y1, X2, Y2, SCORE, ROW, COLUMNS };

/* (n, 6) rows; returns how many are left, which then come first, as they were selected.
 * method: 0 linear, 1 gaussian, 2 hard. */
long classic_soft_nms(float *rows, long n, int method, float iou_threshold, float sigma,
                      float score_threshold) {
  for (long i = 0; i < n; ++i) {
    float *top = rows + COLUMNS * i;
    long best = i;
    for (long j = i + 1; j < n; ++j) {
      if (rows[COLUMNS * j + SCORE] > rows[COLUMNS * best + SCORE]) best = j;
    }
    for (int c = 0; c < COLUMNS; ++c) {
      float held = top[c];
      top[c] = rows[COLUMNS * best + c];
      rows[COLUMNS * best + c] = held;
    }
    float top_area = (top[X2] - top[X1]) * (top[Y2] - top[Y1]);
    for (long j = i + 1; j < n;) {
      float *row = rows + COLUMNS * j;
      float width = fminf(top[X2], row[X2]) - fmaxf(top[X1], row[X1]);
      float height = fminf(top[Y2], row[Y2]) - fmaxf(top[Y1], row[Y1]);
      if (width > 0 && height > 0) {
        float shared = width * height;
        float area = (row[X2] - row[X1]) * (row[Y2] - row[Y1]);
        float iou = shared / (top_area + area - shared);
        float weight = 1;
        if (method == 1) {
          weight = WEIGHT(-(iou * iou) / sigma);
        } else if (iou > iou_threshold) {
          weight = method == 0 ? 1 - iou : 0;
        }
        row[SCORE] *= weight;
        if (row[SCORE] < score_threshold) {
          --n;
          for (int c = 0; c < COLUMNS; ++c) row[c] = rows[COLUMNS * n + c];
          continue;
        }
      }
      ++j;
    }
  }
  return n;
}
