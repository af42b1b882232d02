// tiles_avxvnni.cc once more, compiled for AVX-512 VNNI: the same instruction in another encoding, so that all of the
// file but this runs on processors with AVX-512 and without AVX-VNNI.
#define avxvnni_tile avxvnni_tile_by_avx512
#include "kernels/tiles_avxvnni.cc"
