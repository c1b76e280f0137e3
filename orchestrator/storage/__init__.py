"""Where bytes lie: folders and buckets behind one set of verbs, and who may write there."""
