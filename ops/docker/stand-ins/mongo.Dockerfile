# Stands in for the official `mongo` image where none can be pulled: the mongod that `tidewire-ops mongod fetch`
# gets, mongosh from its registry, the same user and folders. The context holds `mongod`, `node` and `mongosh/`.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends libcurl4 libssl3 libstdc++6 \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 999 --system mongodb \
 && useradd --uid 999 --system --gid mongodb --home-dir /data/db mongodb \
 && mkdir -p /data/db /data/configdb \
 && chown mongodb:mongodb /data/db /data/configdb
COPY node /usr/local/bin/node
COPY mongosh /opt/mongosh
RUN ln -s /opt/mongosh/node_modules/.bin/mongosh /usr/bin/mongosh
COPY mongod /usr/bin/mongod
ENV HOME=/data/db
VOLUME ["/data/db", "/data/configdb"]
EXPOSE 27017
CMD ["mongod"]
