import sys; sys.path.insert(0,'/tmp/lead'); sys.path.insert(0,'/tmp/lead/wt/benchmarks')
