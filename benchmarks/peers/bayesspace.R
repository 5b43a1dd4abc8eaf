# Runs BayesSpace on a section by the steps of its vignette. Written from its documentation; never run here.

suppressPackageStartupMessages({
  library(SingleCellExperiment)
  library(BayesSpace)
})

folder <- commandArgs(trailingOnly = TRUE)[1]
table <- function(name) unname(as.matrix(read.table(file.path(folder, name), sep = "\t")))
counts <- t(table("counts.tsv"))
spots <- table("spots_um.tsv") # x, y
inside <- table("inside.tsv")
sizes <- table("sizes.tsv") # spot, pitch and bin in µm
pitch <- sizes[2]
bin <- sizes[3]

# Its array counts columns in half pitches and rows in heights of the triangle.
rownames(counts) <- paste0("gene", seq_len(nrow(counts)))
colnames(counts) <- paste0("spot", seq_len(ncol(counts)))
places <- data.frame(
  array_row = round(spots[, 2] / (pitch * sqrt(3) / 2)),
  array_col = round(spots[, 1] / (pitch / 2)),
  pxl_row_in_fullres = spots[, 2],
  pxl_col_in_fullres = spots[, 1],
  row.names = colnames(counts)
)
some <- colSums(counts) > 0
sce <- SingleCellExperiment(assays = list(counts = counts[, some]), colData = places[some, ])

set.seed(149)
n_pcs <- min(15, nrow(counts) - 1)
sce <- spatialPreprocess(sce, platform = "Visium", n.PCs = n_pcs, n.HVGs = nrow(counts))
sce <- spatialCluster(sce, q = 7, platform = "Visium", d = n_pcs, nrep = 10000, burn.in = 1000)
fine <- spatialEnhance(sce, q = 7, platform = "Visium", d = n_pcs, nrep = 100000, burn.in = 10000)
fine <- enhanceFeatures(fine, sce, feature_names = rownames(counts), nrounds = 0)

# Each bin is its nearest subspot; log2(x + 1) of size-factor normalised counts becomes counts of the parent spot.
at <- cbind(fine$pxl_col_in_fullres, fine$pxl_row_in_fullres)
bins <- which(inside > 0, arr.ind = TRUE) # row, column
nearest <- apply((bins[, 2:1] - 0.5) * bin, 1, function(p) which.min((at[, 1] - p[1])^2 + (at[, 2] - p[2])^2))
rates <- sweep(pmax(2^as.matrix(logcounts(fine)) - 1, 0), 2, sizeFactors(sce)[fine$spot.idx], "*")
maps <- array(0, c(nrow(counts), dim(inside)))
for (gene in seq_len(nrow(counts))) {
  map <- matrix(0, nrow(inside), ncol(inside))
  map[bins] <- rates[gene, nearest]
  maps[gene, , ] <- map
}

# As .npy: first index fastest, 4 bytes each, the header padded to a multiple of 64.
shape <- paste(dim(maps), collapse = ", ")
header <- sprintf("{'descr': '<f4', 'fortran_order': True, 'shape': (%s), }", shape)
header <- paste0(header, strrep(" ", (64 - (nchar(header) + 11) %% 64) %% 64), "\n")
out <- file(file.path(folder, "maps.npy"), "wb")
writeBin(as.raw(c(0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0)), out)
writeBin(nchar(header), out, size = 2, endian = "little")
writeBin(charToRaw(header), out)
writeBin(as.vector(maps), out, size = 4, endian = "little")
close(out)
