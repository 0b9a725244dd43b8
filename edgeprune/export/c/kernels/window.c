/* What a window reads and writes, and how it moves; a line is an image with one row. */
typedef struct {
    int32_t n, in, h, w, out, oh, ow, kh, kw, sh, sw, ph, pw, eh, ew, dh, dw, groups;
} window;
