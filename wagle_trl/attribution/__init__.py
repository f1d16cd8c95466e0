"""Attribution: from batches to statistics, scores and a mask."""
