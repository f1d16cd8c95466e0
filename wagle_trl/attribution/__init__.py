"""Attribution: batches to statistics, scores and a mask."""
